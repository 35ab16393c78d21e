"""Pickles and torch archives, read without running anything that they hold, and without PyTorch.

A pickle names the functions that rebuild its objects. Here such a name gives an inert stand-in from one short table,
or the file is refused before anything happens; no name ever gives the real thing. machine.py runs the rest.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import struct
import zipfile
from functools import partial
from io import BytesIO
from typing import BinaryIO, Callable

import numpy as np

from .. import bounded
from . import machine
from .machine import Allowance, Machine

JITTOR_MAGIC = b"HCAJSLHD"  # ends every file of jt.save, behind the SHA-1 of the pickle
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save before its zip format; torch/serialization.py
DIMENSIONS = 32  # numpy's most
DTYPES = {
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# all that these readers raise on a file that is damaged or made to mislead
DAMAGE = (pickle.UnpicklingError, AttributeError, *bounded.DAMAGE)


def read_torch_zip(archive: zipfile.ZipFile):
    """What torch.save or torch.jit.save put into a zip file: nested dicts, lists, arrays and Inert objects."""
    listings = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(listings) != 1:
        raise pickle.UnpicklingError("its archive holds two torch files")
    folder = listings[0][: -len("data.pkl")]
    if f"{folder}byteorder" in archive.namelist() and bounded.member(archive, f"{folder}byteorder") != b"little":
        raise pickle.UnpicklingError("its numbers are big-endian; save it on a usual machine")
    storages: dict[str, np.ndarray] = {}

    def storage(kind: str, key: str, numel: int) -> np.ndarray:
        if key not in storages:
            storages[key] = _values(bounded.member(archive, f"{folder}data/{key}"), kind, numel)  # checks its CRC
        return storages[key]

    listing = bounded.member(archive, listings[0])
    allowance = Allowance(len(listing))
    return Machine(BytesIO(listing), allowance, _names(allowance), storage).run()


def read_pickle(file: BinaryIO):
    """What pickle, jt.save or torch.save (in its older format) wrote, from the start of an open file."""
    allowance = Allowance(machine.size(file))
    tail = _jittor_tail(file)
    return _read_streams(file, allowance, _names(allowance), tail)


def _read_streams(file: BinaryIO, allowance: Allowance, names: Callable, tail: int = 0):
    first = Machine(file, allowance, names).run()
    content = _read_legacy_torch(file, allowance, names) if type(first) is int and first == LEGACY_MAGIC else first
    if machine.size(file) - file.tell() != tail:
        raise pickle.UnpicklingError("it is cut short, or something was put behind its end")
    return content


def _read_legacy_torch(file: BinaryIO, allowance: Allowance, names: Callable):
    """The rest of an old torch file: version, machine, the object, keys of its storages, then their bytes."""
    for _ in range(2):
        Machine(file, allowance, names).run()
    waiting: dict[str, tuple[str, np.ndarray]] = {}

    def storage(kind: str, key: str, numel: int) -> np.ndarray:
        if key not in waiting:
            dtype = _dtype(kind)
            allowance.take(numel * _itemsize(dtype))
            waiting[key] = kind, np.zeros(numel, "<f4" if dtype == "bfloat16" else dtype)
        return waiting[key][1]

    loaded = Machine(file, allowance, names, storage).run()
    for key in Machine(file, allowance, names).run():
        kind, values = waiting.pop(machine.text(key))
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != len(values):
            raise pickle.UnpicklingError("a storage of another size than announced")
        values[:] = _values(file.read(numel * _itemsize(_dtype(kind))), kind, numel)
    if waiting:
        raise pickle.UnpicklingError("a storage that it names is not in it")
    return loaded


class Inert:
    """Stands for a module of a TorchScript archive: it holds attributes and does nothing."""

    def __init__(self):
        self.attributes: dict = {}

    def set_state(self, state):
        self.attributes = dict(state)


def _tensor(storage: np.ndarray, offset: int, size, stride, *_):
    """torch._utils._rebuild_tensor_v2: a strided view of a storage."""
    size, stride = _sizes(size), _sizes(stride)
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if (
        len(size) != len(stride)
        or min((offset, *size, *stride)) < 0
        or count > storage.size
        or (count and last >= storage.size)
    ):
        raise pickle.UnpicklingError(f"a tensor of size {size} reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], size, [step * storage.itemsize for step in stride], writeable=False
    )


class _Dtype:
    """numpy.dtype; the byte order comes with the state."""

    def __init__(self, code, *_):
        if machine.text(code).lstrip("<=|") not in ("f2", "f4", "f8", "i8", "i4", "i2", "i1", "u1", "b1"):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")
        self.dtype = np.dtype(code)

    def set_state(self, state):
        self.dtype = self.dtype.newbyteorder(machine.text(state[1]))


class _Array:
    """numpy's _reconstruct; shape, dtype and bytes come with the state."""

    def __init__(self, *_):
        pass

    def set_state(self, state):
        _, shape, dtype, column_major, content = state
        self.array = _from_buffer(content, dtype, shape, "F" if column_major else "C")


def _from_buffer(content, dtype: _Dtype, shape, order="C") -> np.ndarray:
    return np.frombuffer(content, dtype.dtype).reshape(_sizes(shape), order=order)


def _sizes(values) -> tuple[int, ...]:
    if len(values) > DIMENSIONS or not all(type(n) is int for n in values):
        raise pickle.UnpicklingError(f"a shape that is not of up to {DIMENSIONS} whole numbers")
    return tuple(values)


def _first(value, *_):
    return value


def _ordered_dict(*pairs) -> dict:
    """collections.OrderedDict; its content follows as that of a dict, or as one list of pairs."""
    return {machine.key(name): value for name, value in (pairs[0] if pairs else ())}


STAND_INS = {  # a name that pickles know -> what of ours is called in its place
    ("collections", "OrderedDict"): _ordered_dict,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _first,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{
        (f"numpy.{core}.multiarray", "scalar"): lambda dtype, content: _from_buffer(content, dtype, ())
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("jittor", "jittor_core.Var"): _first,  # as protocol 4 spells a nested name
    ("jittor.jittor_core", "Var"): _first,
    ("jittor_core", "Var"): _first,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    **{("torch", name): name for name in DTYPES},
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


def _names(allowance: Allowance) -> Callable:
    """What each name of a pickle stands for, where what it may cost is counted by `allowance`."""

    def latin1(text: str, codec: str) -> bytes:  # _codecs.encode, by which protocol 2 spells bytes
        if codec != "latin1":
            raise pickle.UnpicklingError("bytes in another encoding than numpy's")
        allowance.take(len(text))
        return text.encode("latin1")

    def typed_storage(content: bytes):  # torch.storage._load_from_bytes: a storage in torch's older format
        allowance.take(len(content))
        return _read_streams(BytesIO(content), allowance, partial(find, known=STAND_INS))  # which holds no other

    known = {**STAND_INS, ("_codecs", "encode"): latin1, ("torch.storage", "_load_from_bytes"): typed_storage}

    def find(module: str, name: str, known: dict = known):
        if module == "__torch__" or module.startswith("__torch__."):
            return Inert
        found = known.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which weights have no use for; refused, nothing was run"
            )
        return found

    return find


def plain(value):
    """The array that a pickle's value stands for, or the value itself."""
    return value.array if isinstance(value, _Array) else value


def _dtype(kind: str) -> str:
    if kind not in DTYPES:
        raise pickle.UnpicklingError(f"a storage of kind {kind!r}")
    return DTYPES[kind]


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _values(content: bytes, kind: str, numel: int) -> np.ndarray:
    """The numbers of a storage; bfloat16, which numpy lacks, is the upper half of a float32."""
    dtype = _dtype(kind)
    values = (
        (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
        if dtype == "bfloat16"
        else np.frombuffer(content, dtype)
    )
    if len(values) < numel:
        raise pickle.UnpicklingError("a storage cut short")
    return values[:numel]


def _jittor_tail(file: BinaryIO) -> int:
    """How many bytes stand behind the pickle in a file of jt.save, whose SHA-1 must fit; 0 in other files.

    The file stands at its start again.
    """
    size, tail = machine.size(file), hashlib.sha1().digest_size + len(JITTOR_MAGIC)
    file.seek(max(0, size - tail))
    end = file.read()
    file.seek(0)
    if not end.endswith(JITTOR_MAGIC) or size < tail:
        return 0
    digest, left = hashlib.sha1(), size - tail
    while left:
        part = file.read(min(left, 1 << 20))
        digest.update(part)
        left -= len(part)
    if digest.digest() != end[: -len(JITTOR_MAGIC)]:
        raise pickle.UnpicklingError("its checksum does not fit its content")
    file.seek(0)
    return tail
