"""Reads the names and arrays of a weights file in any format, before they are renamed and checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import bounded
from . import unpickle

NAME = re.compile(rf"[!-~]{{1,{unpickle.NAME_LENGTH}}}")  # of a tensor: printable ASCII without spaces


def read_content(path: Path):
    """Read a file with the reader for its first bytes; nothing in the file is executed.

    Parameters
    ----------
    path : Path

    Returns
    -------
    nested dicts, lists, arrays and ModuleStubs

    Raises
    ------
    One of unpickle.DAMAGE
        If the file is damaged or in an unknown format.
    """
    with open(path, "rb") as file:
        return _content(path, file)


def _content(path: Path, file: BinaryIO):
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        with bounded.archive(file) as archive:
            if any(name.split("/")[-1] == "data.pkl" for name in archive.namelist()):
                return unpickle.read_torch_zip(archive)
        return bounded.npz(file)
    if start[8:] == b"{" and start[4:8] == bytes(4):  # the header's length, whose first byte may be that of a pickle
        return _safetensors(path)
    if start[:1] == b"\x80":
        return unpickle.read_pickle(file)
    if start[8:] == b"{":
        return _safetensors(path)
    raise ValueError("expected a torch archive or state dict, safetensors, Jittor's .pkl or .npz")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            if any(file.get_slice(name).get_dtype() == "BF16" for name in names):
                raise ValueError("its numbers are bfloat16, which numpy lacks; save it as float16 or float32")
            state = {name: file.get_tensor(name) for name in names}
            record = (file.metadata() or {}).get("meta")  # as in an .npz, a JSON text about the model
            return {**state, "meta": np.array(record)} if record and "meta" not in state else state
    except SafetensorError as error:
        is_cut = "not fully covered" in str(error) or "larger than the file" in str(error)
        raise ValueError(f"{'cut short, or damaged: ' * is_cut}{error}") from None


def check_names_and_size(state: dict[str, np.ndarray], size: int) -> None:
    """Raise ValueError for names that are not like NAME, or if the tensors are far larger than the file.

    They can be, because a million tensors may share one storage.
    """
    other = next((name for name in state if not NAME.fullmatch(name)), None)
    if other is not None:
        raise ValueError(f"{other[:50]!r} is no name of a tensor")
    total = sum(value.nbytes for value in state.values())
    if total > bounded.SLACK + bounded.RATIO * size:
        raise ValueError(f"{size} bytes that declare {total} of tensors")
