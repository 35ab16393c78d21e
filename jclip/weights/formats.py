"""Reads the names and arrays of a weights file in any format, before they are renamed and checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import bounded
from . import unpickle

NAME_LENGTH = 200
NAME = re.compile(rf"[!-~]{{1,{NAME_LENGTH}}}")  # of a tensor: printable ASCII without spaces
NESTED = ("state_dict", "model_state_dict", "model", "module")  # keys under which training scripts save a state dict


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a file; nothing in the file is executed.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of str to array
        The tensors by the names in the file.

    Raises
    ------
    One of unpickle.DAMAGE
        If the file is damaged, in an unknown format, or declares more than it holds.
    """
    with open(path, "rb") as file:
        tensors = _state_dict(_content(path, file))
    _check_names_and_size(tensors, path.stat().st_size)
    return tensors


def _content(path: Path, file: BinaryIO):
    """Read a file with the reader for its first bytes; return nested dicts, lists, arrays and ModuleStubs."""
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        with bounded.archive(file) as archive:
            if any(name.split("/")[-1] == "data.pkl" for name in archive.namelist()):
                return unpickle.read_torch_zip(archive)
        return bounded.npz(file)
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
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _state_dict(content) -> dict[str, np.ndarray]:
    """Return the state dict in what `_content` read: that itself, nested in a dict, or the attributes of a module."""
    if isinstance(content, unpickle.ModuleStub):
        return _attributes(content)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, expected names and tensors")
    content = {name: unpickle.to_array(value) for name, value in content.items()}
    if not any(isinstance(value, np.ndarray) for value in content.values()):
        inner = next((content[name] for name in NESTED if isinstance(content.get(name), dict)), None)
        if inner is None:
            raise ValueError("holds no tensors")
        return _state_dict(inner)
    if all(isinstance(name, str) and name.startswith("module.") for name in content):  # torch's DataParallel
        content = {name[len("module.") :]: value for name, value in content.items()}
    other = next((name for name, value in content.items() if not isinstance(value, (np.ndarray, int, float))), None)
    if other is not None:
        raise ValueError(f"{other!r} is a {type(content[other]).__name__}, expected a tensor")
    return {str(name): np.asarray(value) for name, value in content.items()}


def _attributes(module: unpickle.ModuleStub, prefix: str = "", seen: set[int] | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of a TorchScript module and its submodules by their dotted names.

    A module that is reached in several ways is read once; `seen` has the ids of those that were.
    """
    if len(prefix) > NAME_LENGTH:
        raise ValueError("modules nested deeper than any model's")
    seen = {id(module)} if seen is None else seen
    tensors: dict[str, np.ndarray] = {}
    for name, value in module.attributes.items():
        if isinstance(value, np.ndarray):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, unpickle.ModuleStub) and id(value) not in seen:
            seen.add(id(value))
            tensors.update(_attributes(value, f"{prefix}{name}.", seen))
    return tensors


def _check_names_and_size(state: dict[str, np.ndarray], size: int) -> None:
    """Raise ValueError for names that are not like NAME, or if the tensors are far larger than the file.

    They can be, because a million tensors may share one storage.
    """
    other = next((name for name in state if not NAME.fullmatch(name)), None)
    if other is not None:
        raise ValueError(f"{other[:50]!r} is no name of a tensor")
    total = sum(value.nbytes for value in state.values())
    if total > bounded.SLACK + bounded.RATIO * size:
        raise ValueError(f"{size} bytes that declare {total} of tensors")
