"""Files that are written whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PART = ".part"  # of files that are not whole yet


@contextmanager
def written_whole(path: Path) -> Iterator:
    """Open a binary file that becomes `path` when the block ends without an exception; else what was at `path` stays.

    The content is on disk before the name is, so that a kill or a power cut leaves the old file or the new one.
    """
    path, temporary = Path(path), None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.filename is None or str(error.filename).endswith(PART)):
            # a full disk names no file, other errors the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def written_together(paths: Sequence[Path]) -> Iterator[list]:
    """Open binary files that become `paths`, all or none: all are on disk before the first has its name."""
    with ExitStack() as stack:
        files = [stack.enter_context(written_whole(path)) for path in paths]
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs left of `written_whole`; no other run may use the folder."""
    for path in Path(folder).glob(f".*{PART}"):
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
