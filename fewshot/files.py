"""Several files written together, and what killed writes leave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jclip.files import PART, atomic_write
from jclip.paths import expand


@contextmanager
def atomic_write_all(paths: Sequence[Path]) -> Iterator[list]:
    """Open temporary binary files that replace `paths` if the block ends without an exception.

    All files are synced to disk before the first is renamed, so a full disk leaves all old files. Only a kill between
    two renames can leave a mixture; `artifacts.check_together` detects one whose files do not fit together.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(path)) for path in paths]
        yield files
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed runs left in a folder, which no other run may be using."""
    for path in expand(folder).glob(f".*{PART}"):
        path.unlink(missing_ok=True)
