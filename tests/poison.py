"""A Pillow plug-in for files that end the process that decodes them, as a crash of a decoder would."""

import os
import signal

from PIL import Image, ImageFile

READER, WORKER = b"POISON-R", b"POISON-W"  # which process such a file kills: the one that reads, or the worker above it


class PoisonFile(ImageFile.ImageFile):
    """A photograph whose opening kills a process."""

    format = "POISON"

    def _open(self):
        kind = self.fp.read(len(READER))
        os.kill(os.getpid() if kind == READER else os.getppid(), signal.SIGKILL)
        if kind == WORKER:
            signal.pause()


def accept(prefix: bytes) -> bool:
    """Return whether a file begins as such a file does."""
    return prefix.startswith((READER, WORKER))


def register() -> None:
    """Let this process, and those that read for it, open such files."""
    Image.register_open("POISON", PoisonFile, accept)
