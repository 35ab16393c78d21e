"""Pickles and torch archives, read without running anything that they hold, and without PyTorch.

A pickle names the functions that rebuild its objects. Here such a name gives an inert stand-in from one short table,
or the file is refused before anything happens; no name ever gives the real thing.
"""
from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from io import BytesIO
from typing import BinaryIO, Callable

import numpy as np

JITTOR_MAGIC = b"HCAJSLHD"  # ends every file of jt.save, behind the SHA-1 of the pickle
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save before its zip format; torch/serialization.py
DTYPES = {"HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8", "BFloat16Storage": "bfloat16", "LongStorage": "<i8",
          "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}
# all that these readers raise on a file that is damaged or made to mislead
DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, TypeError, AttributeError, LookupError,
          ArithmeticError, MemoryError, RecursionError, NotImplementedError)


def read_torch_zip(archive: zipfile.ZipFile):
    """What torch.save or torch.jit.save put into a zip file: nested dicts, lists, arrays and Inert objects."""
    (listing,) = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    folder = listing[: -len("data.pkl")]
    storages: dict[str, np.ndarray] = {}

    def storage(kind, key, _location, numel, *_):
        if key not in storages:
            content = archive.read(f"{folder}data/{key}")  # checks its CRC
            storages[key] = _values(content, kind, numel)
        return storages[key]

    return _load(BytesIO(archive.read(listing)), storage)


def read_pickle(file: BinaryIO):
    """What pickle, jt.save or torch.save (in its older format) wrote, from the start of an open file."""
    tail = _jittor_tail(file)
    first = _load(file)
    content = _read_legacy_torch(file) if first == LEGACY_MAGIC else first
    if len(file.read()) != tail:
        raise pickle.UnpicklingError("it is cut short, or something was put behind its end")
    return content


def _read_legacy_torch(file: BinaryIO):
    """The rest of an old torch file: version, machine, the object, keys of its storages, then their bytes."""
    _load(file), _load(file)
    waiting: dict[str, np.ndarray] = {}
    size = _size(file)

    def storage(kind, key, _location, numel, *_):
        if key not in waiting:
            dtype = _dtype(kind)
            if numel * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize) > size:
                raise pickle.UnpicklingError("a storage larger than its file")
            waiting[key] = np.zeros(numel, "<f4" if dtype == "bfloat16" else dtype)
            kinds[key] = kind
        return waiting[key]

    kinds: dict[str, str] = {}
    loaded = _load(file, storage)
    for key in _load(file):
        (numel,) = struct.unpack("<q", file.read(8))
        itemsize = 2 if _dtype(kinds[key]) == "bfloat16" else waiting[key].itemsize
        if numel != len(waiting[key]):
            raise pickle.UnpicklingError("a storage of another size than announced")
        waiting[key][:] = _values(file.read(numel * itemsize), kinds[key], numel)
    return loaded


class Inert:
    """Stands for a module of a TorchScript archive: it holds attributes and does nothing."""

    def __setstate__(self, state):
        self.__dict__.update(dict(state))


class _StandIn:
    """A function of ours under a name that pickles know; a pickle can call it and cannot change it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "function", function)

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setattr__(self, *_):
        raise pickle.UnpicklingError("an attempt to change a function")

    __setstate__ = __setattr__


def _tensor(storage: np.ndarray, offset: int, size, stride, *_):
    """torch._utils._rebuild_tensor_v2: a strided view of a storage."""
    size, stride = tuple(size), tuple(stride)
    count = int(np.prod(size, dtype=object))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or count > storage.size or (count and last >= storage.size):
        raise pickle.UnpicklingError(f"a tensor of size {size} reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [step * storage.itemsize for step in stride], writeable=False)


def _typed_storage(content: bytes) -> np.ndarray:
    """torch.storage._load_from_bytes: a storage that torch saved into bytes in its older format."""
    return read_pickle(BytesIO(content))


class _Dtype:
    """numpy.dtype; the byte order comes with the state."""

    def __init__(self, code, *_):
        if str(code).lstrip("<=|") not in ("f2", "f4", "f8", "i8", "i4", "i2", "i1", "u1", "b1"):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """numpy's _reconstruct; shape, dtype and bytes come with the state."""

    def __setstate__(self, state):
        _, shape, dtype, column_major, content = state
        self.array = _from_buffer(content, dtype, shape, "F" if column_major else "C")


def _from_buffer(content, dtype: _Dtype, shape, order="C") -> np.ndarray:
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _latin1(text: str, codec: str) -> bytes:
    """_codecs.encode, by which protocol 2 spells bytes."""
    return text.encode({"latin1": "latin1"}[codec])


def _first(value, *_):
    return value


STAND_INS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _first,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): lambda dtype, content: _from_buffer(content, dtype, ()) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("jittor", "jittor_core.Var"): _first,  # as protocol 4 spells a nested name
    ("jittor.jittor_core", "Var"): _first,
    ("jittor_core", "Var"): _first,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch.storage", "_load_from_bytes"): _typed_storage,
    **{("torch", name): name for name in DTYPES},
    **{("torch.jit._pickle", name): _first for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storage: Callable | None):
        super().__init__(file)
        self.storage = storage

    def find_class(self, module, name):
        if (module, name) in STAND_INS:
            found = STAND_INS[module, name]
            return _StandIn(found) if callable(found) else found
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Inert", (Inert,), {})  # one of its own, which the pickle may spoil
        raise pickle.UnpicklingError(f"it names {module}.{name}, which weights have no use for; refused, nothing was run")

    def persistent_load(self, name):
        if self.storage is None or not isinstance(name, tuple) or len(name) < 5 or name[0] != "storage" or not isinstance(name[4], int):
            raise pickle.UnpicklingError("an unknown reference to data outside the pickle")
        return self.storage(*name[1:])


def _load(file: BinaryIO, storage: Callable | None = None):
    return _Unpickler(file, storage).load()


def plain(value):
    """The array that a pickle's value stands for, or the value itself."""
    return value.array if isinstance(value, _Array) else value


def _dtype(kind) -> str:
    if kind not in DTYPES:
        raise pickle.UnpicklingError(f"a storage of kind {kind!r}")
    return DTYPES[kind]


def _values(content: bytes, kind, numel: int) -> np.ndarray:
    """The numbers of a storage; bfloat16, which numpy lacks, is the upper half of a float32."""
    dtype = _dtype(kind)
    values = (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4") if dtype == "bfloat16" else np.frombuffer(content, dtype)
    if len(values) < numel:
        raise pickle.UnpicklingError("a storage cut short")
    return values[:numel]


def _jittor_tail(file: BinaryIO) -> int:
    """How many bytes stand behind the pickle in a file of jt.save, whose SHA-1 must fit; 0 in other files.

    The file stands at its start again.
    """
    size, tail = _size(file), hashlib.sha1().digest_size + len(JITTOR_MAGIC)
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


def _size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    return size
