"""What is wrong with the user's home folder, in which Jittor, CUDA's folder and official weights are kept."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ClipError

REMEDY = "set {0} to a folder that can be written, e.g. {0}=/tmp/me"  # {0}: HOME, or another variable


def missing() -> ClipError:
    """Return the ClipError that says that there is no home folder: HOME is not set, and the system does not know it."""
    return ClipError(
        f"no home folder: HOME is not set, and the system has none for user {os.getuid()}; {REMEDY.format('HOME')}"
    )


def not_writable(path: Path | str, error: OSError, variable: str = "HOME") -> ClipError:
    """Return the ClipError that says that a file or folder below that of `variable` cannot be written."""
    return ClipError(f"cannot write {path} ({error.strerror or error}); {REMEDY.format(variable)}")
