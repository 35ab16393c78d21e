"""Classes, photographs and labels from folders: train/CLASS/*, test/* and test/CLASS/*."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from jclip import bounded

from . import layout, listing
from .errors import TaskError, preview
from .listing import Listing, natural_key
from .names import LabelFinder, check_name, find_equal_names, readable

logger = logging.getLogger("fewshot")

UNKNOWN = -1  # the label of a photograph whose class is not known
# in messages on a folder that matches no class
NAME_ALONE = "a class without training photographs must be in the class list or be an empty folder in train"


def read_train(train: Path) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """List the classes and the photographs in train/CLASS/*.

    Parameters
    ----------
    train : Path
        The folder that holds one folder per class.

    Returns
    -------
    classes : tuple of str
        The names of the folders in natural order.
    photos : list of (str, int)
        Names of photographs that begin "train/CLASS/", and labels.

    Raises
    ------
    TaskError
        If there is no class folder, the names of two are equal after Unicode normalisation (NFC) and case folding, one
        holds other files only, photographs lie a level too deep, a folder or photograph is badly named, or a link leads
        back to one of its parent folders.
    """
    classes = tuple(sorted(_folders_in(train), key=natural_key))
    if not classes:
        raise TaskError(f"{train}: no folders in it; expected one folder per class, with its photographs")
    equal = find_equal_names(classes)
    if equal:
        raise TaskError(
            f"{train}: the folders {' and '.join(map(readable, equal))} have the same name except for upper and lower "
            "case, or how accents are encoded (NFC, NFD); put their photographs into one of them, or rename one"
        )
    listings = {name: listing.read(train / name) for name in classes}
    layout.check_levels(train, listings)
    for name in layout.nested_classes(listings):
        _warn(f"{train / name}: holds only folders of photographs; all of these are taken as class {name!r}")
    _check_classes_without_photographs(train, listings)
    beside = listing.read(train, recursive=False)
    if beside.photos:
        _warn(
            f"{train}: {len(beside.photos)} photographs lie beside the class folders and are left out: "
            f"{', '.join(preview(beside.photos))}; move them into the folders of their classes"
        )
    others = [f"{name}/{other}" for name, found in listings.items() for other in found.others]
    _report_others(train, beside.others + others)
    photos = [
        (f"{train.name}/{name}/{photo}", label) for label, name in enumerate(classes) for photo in listings[name].photos
    ]
    for name, _ in photos:
        check_name(name, train.parent / name)
    return classes, photos


def read_test(test: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """List the test photographs: labelled in folders named like classes, otherwise unlabelled.

    If all test photographs are in one folder that matches no class, they are unlabelled.

    Parameters
    ----------
    test : Path
    classes : sequence of str
        The class names in the order of labels.

    Returns
    -------
    list of (str, int)
        Names of photographs below `test`, and labels or UNKNOWN.

    Raises
    ------
    TaskError
        If there is no test photograph, one is badly named, or a link leads back to one of its parent folders; if a
        folder beside other photographs matches no class, one matches several, or class folders lie a level too deep.
    """
    if not test.is_dir():
        raise TaskError(f"no folder {test}; expected the test photographs there; name the data folder with --data")
    names = photographs_in(test)
    for name in names:
        check_name(name, test / name)
    labels = _labels_of_folders(test, names, classes)
    return [(name, labels[_top_folder(name)]) for name in names]


def check_test_folders(test: Path, classes: Sequence[str]) -> None:
    """Raise TaskError for a folder in `test` that holds no photographs and matches no class."""
    finder = LabelFinder(classes)
    for name in _folders_in(test):
        if finder.get(name) is None and not listing.read(test / name).photos:
            raise TaskError(
                f"{test / name}: no photographs in it, and its name is none of the {len(classes)} classes; remove it "
                f"({NAME_ALONE})"
            )


def photographs_in(folder: Path) -> list[str]:
    """Return the names of the photographs in and below a folder, in natural order; log how many other files there are.

    Raises
    ------
    TaskError
        If there is no photograph, or a link leads back to one of its parent folders.
    """
    found = listing.read(folder)
    if found.photos:
        _report_others(folder, found.others)
        return found.photos
    if found.others:
        raise TaskError(f"{folder}: no photographs in it that can be read, but {_summary(folder, found.others)}")
    if found.litter:
        raise TaskError(f"{folder}: no photographs in it, only {', '.join(preview(found.litter))}")
    raise TaskError(f"{folder}: no photographs in it")


def _labels_of_folders(test: Path, names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Return {folder in `test`: label}; the key of photographs that are in no folder is ""."""
    finder = LabelFinder(classes)
    first: dict[str, str] = {}  # folder -> first photograph in it
    for name in names:
        first.setdefault(_top_folder(name), name)
    labels = {folder: finder.get(folder) if folder else UNKNOWN for folder in first}
    unknown = next((folder for folder, label in labels.items() if label is None), None)
    if unknown is None:
        return labels
    inner = {_top_folder(name.partition("/")[2]) for name in names if _top_folder(name) == unknown} - {""}
    if any(finder.get(folder) is not None for folder in inner):
        raise TaskError(
            f"{test / unknown}: it is none of the {len(classes)} classes, but holds folders that are "
            f"({', '.join(preview(sorted(inner)))}); move them up into {test} (an archive may have been unpacked a "
            "level too deep)"
        )
    if len(labels) > 1:
        raise TaskError(
            f"{test / first[unknown]}: its folder is none of the {len(classes)} classes; rename the folder if it is "
            f"misspelled; put unlabelled photographs into {test} itself; {NAME_ALONE}"
        )
    _warn(f"{test / unknown}: no class has this name; its {len(names)} photographs are taken as unlabelled")
    return {unknown: UNKNOWN}


def _check_classes_without_photographs(train: Path, listings: Mapping[str, Listing]) -> None:
    """Raise TaskError for a class folder that holds other files only; name those that hold nothing but litter."""
    littered = []
    for name, found in listings.items():
        if found.others and not found.photos:
            raise TaskError(
                f"{train / name}: none of its files is a photograph that can be read ({found.others[0]}; "
                f"{_summary(train / name, found.others)}); convert them, or leave the folder empty for a class that is "
                "known by its name alone"
            )
        if found.litter and not found.photos:
            littered.append(f"{name}/{found.litter[0]}")
    if littered:
        _warn(
            f"{train}: {len(littered)} class folders count as empty, classes known by their names alone, although they "
            f"hold {', '.join(preview(littered))}"
        )


def _report_others(folder: Path, names: Sequence[str]) -> None:
    """Log how many files are left out because they cannot be read as photographs."""
    if names:
        _warn(
            f"{folder}: {len(names)} files cannot be read as photographs and are left out: " + _summary(folder, names)
        )


def _summary(folder: Path, names: Sequence[str]) -> str:
    """Count files by suffix, and say what makes some of them readable."""
    remedies = "; ".join(listing.remedies(folder, names))
    return listing.count_by_suffix(names) + (f"; {remedies}" if remedies else "")


def _folders_in(folder: Path) -> list[str]:
    names = listing.folders_in(folder)
    for name in names:
        check_name(name, folder / name)
    return names


def _top_folder(name: str) -> str:
    """Return the first folder in the name of a photograph, "" if there is none."""
    return name.partition("/")[0] if "/" in name else ""


def _warn(message: str) -> None:
    logger.warning(bounded.one_line(message))
