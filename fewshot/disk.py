"""Finds files on the disk by the names in a list, whichever way either writes accents."""

from __future__ import annotations

import os
from pathlib import Path

from . import listing
from .names import composed


class Disk:
    """The files below a folder, found by name; each folder is listed only once, for speed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, _Names] = {}
        self._folders: dict[str, _Names] = {}
        self._paths = {"": ""}  # folder in the list -> on the disk

    def find(self, name: str) -> str | None:
        """Return the name on the disk, or None if there is no such file."""
        parent, _, file = name.rpartition("/")
        real = self._real(parent)
        if real not in self._files:
            self._files[real] = _Names(_files_in(self._folder / real))
        found = self._files[real].find(file)
        if found == file and real == parent:
            return name  # the same object, to save memory
        return found and _joined(real, found)

    def _real(self, parent: str) -> str:
        """Return the name of a folder on the disk, or as it is if there is none."""
        if parent not in self._paths:
            self._paths[parent] = parent if os.path.isdir(self._folder / parent) else self._composed_path(parent)
        return self._paths[parent]

    def _composed_path(self, parent: str) -> str:
        real = ""
        for name in parent.split("/"):
            if real not in self._folders:
                self._folders[real] = _Names(set(listing.folders_in(self._folder / real)))
            found = self._folders[real].find(name)
            if not found:
                return parent
            real = _joined(real, found)
        return real


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


class _Names:
    """The names in a folder, found in any Unicode form."""

    def __init__(self, names: set[str]):
        self._names = names
        self._composed: dict[str, str] | None = None

    def find(self, name: str) -> str | None:
        if name in self._names:
            return name
        if self._composed is None:
            self._composed = {composed(other): other for other in sorted(self._names)}
        return self._composed.get(composed(name))


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except PermissionError:
        raise
    except OSError:  # it is missing, not a folder, or its name is too long
        return set()


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself; opening it reports the error
        return True
