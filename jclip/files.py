"""Atomic writes: a file is either complete or unchanged, even if the process is killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .paths import expand

PART = ".part"  # suffix of unfinished files


@contextmanager
def atomic_write(path: Path) -> Iterator:
    """Open a temporary binary file that replaces `path` if the block ends without an exception.

    The content is synced to disk before the file is renamed, so a kill or a power cut leaves the old or the new file.
    """
    path = expand(path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{PART}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and (error.filename is None or str(error.filename).endswith(PART)):
            # the error of a full disk has no file name, other errors have the temporary name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
