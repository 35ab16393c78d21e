"""Atomic writes: a file is either complete or unchanged, even if the process is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .paths import expand

PART = ".part"  # suffix of unfinished files


@contextmanager
def atomic_write(path: Path) -> Iterator:
    """Open a temporary binary file that replaces `path` if the block ends without an exception.

    The content is synced to disk before the file is renamed, so a kill or a power cut leaves the old or the new file.
    """
    path, temporary = expand(path), None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives access only to the owner
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or str(error.filename).endswith(PART)):
            # the error of a full disk has no file name, other errors have the temporary name
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
