"""What driver and workers send each other. Neither needs Ray or Jittor to be imported."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL

import jclip
from jclip import opening, pillow
from jclip.features import Encoded
from jclip.settings import ModelSettings

from ..data import Photo
from ..encoder import PixelReader

PROJECT = Path(__file__).parents[2]
SOURCES = ("jclip", "fewshot", "augment.py")  # the code that rows depend on


class Setup(NamedTuple):
    """What a worker is started with."""

    weights: str  # absolute path on the driver's machine
    weights_sha256: str
    device: str
    precision: str
    batch_size: int
    threads: int
    pillow: pillow.Settings


class Work(NamedTuple):
    """A batch: photographs and views, or sentences."""

    number: int
    indices: list[int]  # into the caller's list
    items: list[tuple[Photo, int]]  # (photograph, index of the view), with absolute folders
    sizes: list[int | None]  # bytes of each photograph's file on the driver's machine
    reader: PixelReader | None
    texts: list[str] = []
    batch_size: int = 0  # of sentences
    # The content of each file, or why the driver cannot read it; None where the worker reads the files.
    contents: list[bytes | str] | None = None


class Done(NamedTuple):
    """The rows of a batch, in its order."""

    number: int
    encoded: Encoded


# The cause given for a photograph whose file is missing, or has another size, where the worker is.
ELSEWHERE = "not the driver's file"


def facts(state: dict[str, np.ndarray], settings: ModelSettings) -> dict[str, str]:
    """Return what must be equal on all machines, so that a row does not depend on which one has made it."""
    try:
        jittor = importlib.metadata.version("jittor")
    except importlib.metadata.PackageNotFoundError:
        jittor = "not installed"
    return {
        "program": f"{jclip.__version__} ({_sources_sha256()[:12]})",
        "Pillow": PIL.__version__,
        "pillow-heif": opening.register_heif() or "not installed",
        "Jittor": jittor,
        "weights": _state_sha256(state)[:12],
        "settings": json.dumps(settings.differences(), sort_keys=True),
    }


def differences(here: dict[str, str], there: dict[str, str]) -> str:
    """Return what differs, such as "Pillow 12.0.0 there, 13.0.0 here", or ""."""
    return "; ".join(
        f"{name} {there.get(name, 'unknown')} there, {value} here"
        for name, value in here.items()
        if there.get(name) != value
    )


@cache
def _sources_sha256() -> str:
    """Return the SHA-256 of the program's source files: two clones of different commits may have the same version."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = PROJECT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                digest.update(f"{file.relative_to(PROJECT).as_posix()} {file.stat().st_size}\n".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _state_sha256(state: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of parameters as they were read: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        digest.update(f"{name} {array.dtype.str} {state[name].shape}\n".encode())
        digest.update(array)
    return digest.hexdigest()
