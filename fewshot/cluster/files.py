"""Photographs as files: compared between driver and workers, or sent as a whole."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def file_to_probe(paths: Iterable[Path]) -> tuple[str, int, str] | None:
    """Return the path, size and SHA-256 of the first readable file, or None."""
    for path in paths:
        content = read_content(path)
        if isinstance(content, bytes):
            return str(path), len(content), hashlib.sha256(content).hexdigest()
    return None


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes, or None if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def read_content(path: Path) -> bytes | str:
    """Return the content of a file, or why it cannot be read, in the words of `jclip.opening`."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "not a file"
        return path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)


def same_file(path: str, size: int, sha256: str) -> bool:
    """Return whether there is a file of this size and content here."""
    try:
        with open(path, "rb") as file:
            content = file.read(size + 1)
    except OSError:
        return False
    return len(content) == size and hashlib.sha256(content).hexdigest() == sha256
