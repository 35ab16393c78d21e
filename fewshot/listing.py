"""Finds the photographs in a folder, by suffix or else by content.

Files that systems and programs create for themselves are ignored.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from jclip import opening

from .errors import TaskError, preview

# Files with these suffixes count as photographs without being opened; an unreadable one is reported when it is encoded.
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"}
SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"}
# more of them, where Pillow was built with the library (name in PIL.features)
SUFFIXES_WITH_LIBRARY = {"avif": {".avif", ".avifs"}, "jpg_2000": {".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"}}
# Of Pillow's formats, those that hold photographs and can be told by their first bytes. Files with other suffixes, or
# without one, are photographs if they are of one of these formats. No icons, no vector graphics, no video.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF", "QOI", "FITS", "PSD", "SGI"),
    *("PCX", "DDS", "SUN"),
)
# What systems and programs leave in folders, in lower case; beside what is hidden, whose names begin with a dot.
LITTER_FOLDERS = {"__macosx", "lost+found", "$recycle.bin", "recycler", "system volume information", "__pycache__"}
LITTER_FOLDERS |= {"@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}  # of network disks
LITTER_FILES = {"desktop.ini", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "picasa.ini", "folder.ico", "icon\r"}
LITTER_FILES |= {"synoindex_media_info"}


class Listing(NamedTuple):
    """The files of a folder; names are relative to it, with forward slashes."""

    photos: list[str]  # in natural order
    others: list[str]  # all other files
    litter: list[str]  # hidden files, and files of LITTER_FILES


def read(folder: Path, recursive: bool = True) -> Listing:
    """List the files in a folder, and below it if `recursive`.

    Links are followed. Litter folders and hidden folders are skipped.

    Raises
    ------
    TaskError
        For a link that leads back to a parent folder.
    OSError
        If a folder cannot be listed.
    """
    photos: list[str] = []
    others: list[str] = []
    litter: list[str] = []
    suffixes = known_suffixes()
    pending = [(str(folder), "", frozenset())]  # (folder, prefix of the names in it, identities of its parent folders)
    while pending:
        here, prefix, above = pending.pop()
        status = os.stat(here)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise TaskError(f"{here}: a link that leads back to one of its parent folders; remove it")
        with os.scandir(here) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _is_folder(entry):
                    if recursive and not is_litter_folder(entry.name):
                        pending.append((entry.path, f"{name}/", above | {identity}))
                elif entry.name.startswith("."):
                    litter.append(name)
                elif suffix(name) in suffixes:
                    photos.append(name)
                elif entry.name.lower() in LITTER_FILES:
                    litter.append(name)
                elif _is_photograph(entry):
                    photos.append(name)
                else:
                    others.append(name)
    return Listing(*(sorted(names, key=natural_key) for names in (photos, others, litter)))


def is_litter_folder(name: str) -> bool:
    """Return whether a folder of this name is hidden, or made by a system or a program for itself."""
    return name.startswith(".") or name.lower() in LITTER_FOLDERS


@functools.cache
def known_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the photographs that the installed Pillow reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow does not know all names
        found = [suffixes for library, suffixes in SUFFIXES_WITH_LIBRARY.items() if features.check(library)]
    if opening.register_heif():
        found.append(opening.HEIF_SUFFIXES)
    return frozenset(SUFFIXES.union(*found))


def suffix(name: str) -> str:
    """Return the suffix of a file name in lower case."""
    return os.path.splitext(name)[1].lower()


def count_by_suffix(names: Sequence[str]) -> str:
    """Count files by suffix: "3 .txt, 1 .heic, 1 without a suffix"."""
    counts = Counter(map(suffix, names)).most_common()
    return ", ".join(preview([f"{n} {ending or 'without a suffix'}" for ending, n in counts]))


def remedies(folder: Path, names: Sequence[str]) -> list[str]:
    """Return what to install so that Pillow can read these files, such as HEIC."""
    return sorted({opening.missing_support(folder / name) or "" for name in names} - {""})


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, litter folders left out, or [] if it is not a folder."""
    if not os.path.isdir(folder):  # also where the name is too long
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if _is_folder(entry) and not is_litter_folder(entry.name)]


def natural_key(text: str) -> list:
    """Return a sort key that orders numbers by value: image_2 before image_10."""
    parts = re.split(r"([0-9]+)", text)
    # compare first the number of digits, then the text: int() would limit the number of digits
    numbers = [part.lstrip("0") for part in parts]
    return [(len(number), number, part) if i % 2 else (0, part) for i, (part, number) in enumerate(zip(parts, numbers))]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; with the suffix of a photograph, it is reported when it is encoded
        return False


def _is_photograph(entry: os.DirEntry) -> bool:
    """Return whether Pillow recognises the content of a file."""
    try:
        if not entry.is_file():  # opening a pipe would wait for ever
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(entry.path, formats=_formats()).close()
        return True
    except Image.DecompressionBombError:  # it is one; reading it says what is wrong with it
        return True
    except Exception:  # Pillow may raise any
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
