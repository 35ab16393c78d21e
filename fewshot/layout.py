"""Checks for data folders whose photographs are at the wrong folder level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import listing
from .errors import TaskError, preview
from .listing import Listing
from .names import folded

SPLIT_FOLDERS = {"train", "test", "val", "valid", "validation"}  # folders of whole data sets
MAX_NESTED = 3  # levels of folders in which a data folder is looked for
MAX_FOLDERS = 100  # folders searched per level


def task_below(folder: Path, markers: Sequence[str]) -> Path | None:
    """Return the first folder below `folder` that holds a task, or None; an archive often has a folder of its own.

    Parameters
    ----------
    folder : Path
    markers : sequence of str
        Names of files or folders; a folder that contains one of them holds a task.
    """
    level = [folder]
    try:
        for _ in range(MAX_NESTED):
            level = [
                path / name for path in level for name in sorted(listing.folders_in(path), key=listing.natural_key)
            ]
            level = level[:MAX_FOLDERS]
            for path in level:
                if any((path / name).exists() for name in markers):
                    return path
    except OSError:  # a folder that cannot be listed; nothing is found
        pass
    return None


def check_levels(train: Path, listings: Mapping[str, Listing]) -> None:
    """Raise TaskError if the folders in `train` hold class folders in place of photographs.

    That is so if none of them holds a photograph itself, and either all are named like SPLIT_FOLDERS, or most names of
    the folders in them occur only once. Names that occur in many of them (cat/2021, dog/2021) divide the photographs of
    a class.

    Parameters
    ----------
    train : Path
    listings : mapping of str to Listing
        The files in and below each folder in `train`.
    """
    inner = _inner_folders(listings)
    if not inner or not all(inner.values()):
        return
    are_splits = {folded(name) for name in inner} <= SPLIT_FOLDERS
    if are_splits and len(inner) > 1:
        raise TaskError(
            f"{train}: holds a whole data set ({_listed(inner)}), unpacked a level too deep; name it with --data "
            f"{train}"
        )
    occurrences = Counter(folded(name) for folders in inner.values() for name in folders)
    unique = sum(n == 1 for n in occurrences.values())
    if are_splits or (len(occurrences) > 1 and 2 * unique > len(occurrences)):
        paths = [f"{name}/{below}" for name, folders in inner.items() for below in folders]
        raise TaskError(
            f"{train}: its folders ({_listed(inner)}) hold no photographs but folders of photographs "
            f"({_listed(paths)}); expected {train}/CLASS/*: if these are the classes, move them up into {train} (an "
            f"archive may have been unpacked a level too deep); if {_listed(inner)} are the classes, move the "
            "photographs themselves into their folders"
        )


def nested_classes(listings: Mapping[str, Listing]) -> list[str]:
    """Return the class folders without photographs in themselves but with several folders of photographs.

    If no class folder holds photographs itself, that is how the data are divided, and none is returned.

    Parameters
    ----------
    listings : mapping of str to Listing
        The files in and below each class folder.
    """
    inner = _inner_folders(listings)
    return [] if all(inner.values()) else [name for name, folders in inner.items() if len(folders) > 1]


def _inner_folders(listings: Mapping[str, Listing]) -> dict[str, list[str]]:
    """Return {folder with photographs in or below it: the folders in it, or [] if it holds a photograph itself}."""
    inner = {}
    for name, found in listings.items():
        if found.photos:
            only_folders = all("/" in photo for photo in found.photos)
            folders = {photo.split("/")[0] for photo in found.photos} if only_folders else set()
            inner[name] = sorted(folders, key=listing.natural_key)
    return inner


def _listed(names) -> str:
    return ", ".join(preview(list(names)))
