"""CLIP's weights from any of the usual files: recognised by content, renamed by one table per layout, checked strictly.

Everything becomes OpenAI's state dict: name -> array, such as visual.transformer.resblocks.0.attn.in_proj_weight.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..architecture import architecture_of, expected_shapes
from ..errors import ClipError
from . import configs, formats, layouts, unpickle

LISTED = 8  # names in an error before "and n more"


def read(path: Path) -> dict[str, np.ndarray]:
    """Read OpenAI's state dict from a file, float16 or float32 as stored.

    Reads OpenAI's TorchScript archive, torch state dicts (zip or older format; plain or nested), Hugging Face's and
    open_clip's safetensors, Jittor's .pkl and .npz. Nothing in the file is run.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict of str to array

    Raises
    ------
    ClipError
        Where the file is none of these, is damaged or holds another model (also by the words of a Hugging Face or
        open_clip config beside it), or has missing, extra, misshapen or non-finite tensors, which the message lists.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipError(f"no weights at {path}; make them with: python convert_weights.py ViT-B/32")
    try:
        state = formats.read_tensors(path)
    except unpickle.DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ClipError(f"{path}: damaged, or no weights of a known format ({reason})") from None
    if layouts.is_resnet(state):
        raise ClipError(
            f"{path}: a CLIP with a ResNet image tower; jclip has OpenAI's vision transformers only (ViT-B/32, "
            "ViT-B/16, ViT-L/14, ViT-L/14@336px)"
        )
    beside = configs.candidates(path, state)
    try:
        state = layouts.openai_names(state)
        sizes = architecture_of(state)
    except (ValueError, ClipError) as error:
        raise ClipError(f"{path}: {error}") from None
    _check(path, state, expected_shapes(sizes))
    configs.check(beside, path, sizes)
    return state


def write(state: dict[str, np.ndarray], file: BinaryIO) -> None:
    """Write arrays as float32, as jt.save does and jt.load and JCLIP read: a pickle, its SHA-1, a magic word."""
    digest = hashlib.sha1()

    class Sink:
        def write(self, part):
            digest.update(part)
            return file.write(part)

    pickler = pickle.Pickler(Sink(), 4)
    pickler.fast = True  # no memo: it would keep a second copy of every array until the end
    pickler.dump({name: np.ascontiguousarray(value, np.float32).reshape(value.shape) for name, value in state.items()})
    file.write(digest.digest() + unpickle.JITTOR_MAGIC)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, as sha256sum prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _check(path: Path, state: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise a ClipError that lists every tensor that is missing, extra, misshapen, not of floats or not finite."""
    for name, value in state.items():  # 0-d scalars come back from Jittor with one element
        if value.shape == (1,) and expected.get(name) == ():
            state[name] = value.reshape(())
    present = [name for name in expected if name in state]
    floats = [name for name in present if state[name].dtype.kind == "f"]
    problems = {
        "missing": [name for name in expected if name not in state],
        "extra": [name for name in state if name not in expected],
        "misshapen": [
            f"{name} {state[name].shape}, expected {expected[name]}"
            for name in present
            if state[name].shape != expected[name]
        ],
        "not floating point": [f"{name} ({state[name].dtype})" for name in present if name not in floats],
        "NaN or infinite": [name for name in floats if not np.isfinite(state[name]).all()],
    }
    lines = [f"{problem}: {_listed(names)}" for problem, names in problems.items() if names]
    if lines:
        raise ClipError(f"{path}: not the weights of one CLIP; {'; '.join(lines)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
