"""Data folders whose photographs lie a level too high or too deep: what a message says about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import listing
from .errors import TaskError, preview
from .listing import Listing
from .names import folded

PARTS = {"train", "test", "val", "valid", "validation"}  # folders of whole data sets
MAX_NESTED = 3  # levels of folders in which a data folder is looked for
MAX_FOLDERS = 100  # folders of a level among which it is looked for


def task_below(folder: Path, files: Sequence[str]) -> Path | None:
    """Return the first folder below `folder` that holds a task, or None; an archive often has a folder of its own.

    Parameters
    ----------
    folder : Path
    files : sequence of str
        Names, one of which a task's folder holds.
    """
    level = [folder]
    try:
        for _ in range(MAX_NESTED):
            level = [
                path / name for path in level for name in sorted(listing.folders_in(path), key=listing.natural_key)
            ]
            level = level[:MAX_FOLDERS]
            for path in level:
                if any((path / name).exists() for name in files):
                    return path
    except OSError:  # a folder that cannot be listed; nothing is found
        pass
    return None


def check_levels(train: Path, listings: Mapping[str, Listing]) -> list[str]:
    """Raise TaskError if the folders in `train` hold class folders in place of photographs.

    That is so if none of them holds a photograph itself and most names of the folders in them occur only once. Names
    that occur in many of them (cat/2021, dog/2021) divide the photographs of a class.

    Parameters
    ----------
    train : Path
    listings : mapping of str to Listing
        The files in and below each folder in `train`.

    Returns
    -------
    list of str
        The folders that hold no photograph themselves but several folders with photographs.
    """
    filled = {name: found.photos for name, found in listings.items() if found.photos}
    inner = {
        name: sorted({photo.split("/")[0] for photo in photos}, key=listing.natural_key)
        for name, photos in filled.items()
        if all("/" in photo for photo in photos)
    }
    if len(inner) < len(filled) or not inner:
        return [name for name, folders in inner.items() if len(folders) > 1]
    if {folded(name) for name in inner} <= PARTS and len(inner) > 1:
        raise TaskError(
            f"{train}: holds a whole data set ({_listed(inner)}), unpacked a level too deep; name it with --data "
            f"{train}"
        )
    occurrences = Counter(folded(name) for folders in inner.values() for name in folders)
    unique = sum(n == 1 for n in occurrences.values())
    if (len(occurrences) > 1 and 2 * unique > len(occurrences)) or {folded(name) for name in inner} <= PARTS:
        paths = [f"{name}/{below}" for name, folders in inner.items() for below in folders]
        raise TaskError(
            f"{train}: its folders ({_listed(inner)}) hold no photographs but folders of photographs "
            f"({_listed(paths)}); expected {train}/CLASS/*: if these are the classes, move them up into {train} (an "
            f"archive may have been unpacked a level too deep); if {_listed(inner)} are the classes, move the "
            "photographs themselves into their folders"
        )
    return []


def _listed(names) -> str:
    return ", ".join(preview(list(names)))
