"""Reads pickles and torch archives without executing anything that they hold, and without PyTorch.

A pickle names the functions that rebuild its objects. A table, ALLOWED_GLOBALS, has a harmless replacement for each
name that weights need, and standins.py one that does nothing for what is often saved beside them. A file with any other
name is refused, and no name ever gives the original function. machine.py executes the rest of a pickle. PyTorch's
torch/_weights_only_unpickler.py has the same shape.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import struct
import zipfile
from functools import partial
from io import BytesIO
from typing import BinaryIO, Callable

import numpy as np

from .. import bounded
from . import machine, standins
from .machine import Allowance, Ignored, Machine

JITTOR_MAGIC = b"HCAJSLHD"  # the last bytes of every file of jt.save, after the SHA-1 of the pickle
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch.save before its zip format; torch/serialization.py
NAME_LENGTH = 200  # of a tensor
MAX_DIMENSIONS = 32  # of an array in numpy before version 2
DTYPES = {  # torch's type of a storage -> dtype
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
    """Read what torch.save or torch.jit.save wrote.

    Parameters
    ----------
    archive : zipfile.ZipFile, opened by `bounded.archive`

    Returns
    -------
    nested dicts, lists, arrays and ModuleStubs

    Raises
    ------
    One of DAMAGE
        If the archive is damaged, or its pickle names what is not in ALLOWED_GLOBALS.
    """
    pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("its archive holds two torch files")
    folder = pickles[0][: -len("data.pkl")]
    if f"{folder}byteorder" in archive.namelist() and bounded.member(archive, f"{folder}byteorder") != b"little":
        raise pickle.UnpicklingError("its numbers are big-endian; save it on a usual machine")
    storages: dict[str, np.ndarray] = {}

    def storage(storage_type: str, key: str, count: int) -> np.ndarray:
        if key not in storages:
            storages[key] = _values(bounded.member(archive, f"{folder}data/{key}"), storage_type, count)
        return storages[key]

    content = bounded.member(archive, pickles[0])
    allowance = Allowance(len(content))
    return Machine(BytesIO(content), allowance, _resolver(allowance), storage).run()


def read_pickle(file: BinaryIO):
    """Read what pickle, jt.save or torch.save (in its older format) wrote.

    Parameters
    ----------
    file : binary file, seekable, at its start

    Returns
    -------
    nested dicts, lists and arrays; `to_array` is needed for numpy's

    Raises
    ------
    One of DAMAGE
        If the file is damaged, or names what is not in ALLOWED_GLOBALS.
    """
    allowance = Allowance(machine.size(file))
    trailer = _check_jittor_trailer(file)
    return _read_pickles(file, allowance, _resolver(allowance), trailer)


def _read_pickles(file: BinaryIO, allowance: Allowance, resolve: Callable, trailer: int = 0):
    """Read one pickle, or the several of torch's older format; `trailer` bytes must follow."""
    first = Machine(file, allowance, resolve).run()
    content = _read_legacy_torch(file, allowance, resolve) if type(first) is int and first == LEGACY_MAGIC else first
    if machine.size(file) - file.tell() != trailer:
        raise pickle.UnpicklingError("it is cut short, or something was put behind its end")
    return content


def _read_legacy_torch(file: BinaryIO, allowance: Allowance, resolve: Callable):
    """Read the rest of a file in torch's older format.

    After the magic number come the pickles of the format's version, the machine, the object and the keys of its
    storages, then the storages' bytes.
    """
    for _ in range(2):
        Machine(file, allowance, resolve).run()
    storages: dict[str, tuple[str, np.ndarray]] = {}  # arrays that are filled when their bytes are read

    def storage(storage_type: str, key: str, count: int) -> np.ndarray:
        if key not in storages:
            dtype = _dtype(storage_type)
            allowance.use_bytes(count * _itemsize(dtype))
            storages[key] = storage_type, np.zeros(count, "<f4" if dtype == "bfloat16" else dtype)
        return storages[key][1]

    loaded = Machine(file, allowance, resolve, storage).run()
    for key in Machine(file, allowance, resolve).run():
        storage_type, values = storages.pop(machine.text(key))
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(values):
            raise pickle.UnpicklingError("a storage of another size than announced")
        values[:] = _values(file.read(count * _itemsize(_dtype(storage_type))), storage_type, count)
    if storages:
        raise pickle.UnpicklingError("a storage that it names is not in it")
    return loaded


class ModuleStub:
    """Replaces a module of a TorchScript archive; it has the attributes of the module, but not its code."""

    def __init__(self):
        self.attributes: dict = {}

    def set_state(self, state):
        self.attributes = dict(state)

    def tensors(self, prefix: str = "", seen: set[int] | None = None) -> dict[str, np.ndarray]:
        """Return the tensors of the module and its submodules by their dotted names.

        A module that is reached in several ways is read once; `seen` has the ids of those that were.
        """
        if len(prefix) > NAME_LENGTH:
            raise ValueError("modules nested deeper than any model's")
        seen = {id(self)} if seen is None else seen
        tensors: dict[str, np.ndarray] = {}
        for name, value in self.attributes.items():
            if isinstance(value, np.ndarray):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, ModuleStub) and id(value) not in seen:
                seen.add(id(value))
                tensors.update(value.tensors(f"{prefix}{name}.", seen))
        return tensors


def _tensor(storage: np.ndarray, offset: int, size, stride, *_):
    """Replace torch._utils._rebuild_tensor_v2: return a strided view of a storage."""
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
    """Replaces numpy.dtype; the byte order comes with the state. Text, dates and objects have no dtype here."""

    def __init__(self, code, *_):
        is_number = re.fullmatch(r"[<=|]?(?:f[248]|[iu][1248]|b1|c8|c16)", machine.text(code))
        self.dtype = np.dtype(code) if is_number else None

    def set_state(self, state):
        if self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(machine.text(state[1]))


class _Array:
    """Replaces numpy's _reconstruct; shape, dtype and bytes come with the state."""

    def __init__(self, *_):
        pass

    def set_state(self, state):
        _, shape, dtype, column_major, content = state
        self.array = _from_buffer(content, dtype, shape, "F" if column_major else "C")


def to_array(value):
    """Return the array that a replacement of numpy's holds, and any other value as it is."""
    return value.array if isinstance(value, _Array) else value


def _from_buffer(content, dtype: _Dtype, shape, order="C"):
    """Replace numpy's _frombuffer: return an array, or Ignored if its elements are no numbers."""
    if dtype.dtype is None:
        return Ignored()
    return np.frombuffer(content, dtype.dtype).reshape(_sizes(shape), order=order)


def _sizes(values) -> tuple[int, ...]:
    """Return a shape or strides as a tuple; raise UnpicklingError if they are not that."""
    if len(values) > MAX_DIMENSIONS or not all(type(n) is int for n in values):
        raise pickle.UnpicklingError(f"a shape that is not of up to {MAX_DIMENSIONS} whole numbers")
    return tuple(values)


def _first(value, *_):
    """Replace a function that wraps or converts its first argument."""
    return value


def _default_dict(*_) -> dict:
    """Replace collections.defaultdict, whose items follow."""
    return {}


def _counter(*counts) -> dict:
    """Replace collections.Counter, which gets its items as a dict."""
    return counts[0] if counts and type(counts[0]) is dict else {}


def _deque(*_) -> list:
    """Replace collections.deque, whose items follow."""
    return []


def _tensor_of_type(rebuild, _type, arguments, _state):
    """Replace torch._tensor._rebuild_from_type_v2: rebuild a tensor that has attributes, without them."""
    if type(rebuild) is not machine.Function or type(arguments) is not tuple:
        raise pickle.UnpicklingError("it calls what is no function")
    return rebuild.function(*arguments)


def _ordered_dict(*pairs) -> dict:
    """Replace collections.OrderedDict, whose items follow as those of a dict, or as one list of pairs."""
    return {machine.key(name): value for name, value in (pairs[0] if pairs else ())}


ALLOWED_GLOBALS = {  # (module, name) in a pickle -> the replacement
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("collections", "Counter"): _counter,
    ("collections", "deque"): _deque,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _first,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{
        (f"numpy.{core}.multiarray", "scalar"): lambda dtype, content: _from_buffer(content, dtype, ())
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("jittor", "jittor_core.Var"): _first,  # a nested name in protocol 4
    ("jittor.jittor_core", "Var"): _first,
    ("jittor_core", "Var"): _first,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "Size"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    **{("torch", name): name for name in DTYPES},
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


def _resolver(allowance: Allowance) -> Callable:
    """Return the function that maps (module, name) to its replacement; `allowance` counts the bytes they allocate."""

    def encode(text: str, codec: str) -> bytes:  # _codecs.encode, by which protocol 2 writes bytes
        if codec != "latin1":
            raise pickle.UnpicklingError("bytes in another encoding than numpy's")
        allowance.use_bytes(len(text))
        return text.encode("latin1")

    def load_storage(content: bytes):  # torch.storage._load_from_bytes: a storage in torch's older format
        allowance.use_bytes(len(content))
        # with the table alone, so that such a storage cannot hold another
        return _read_pickles(BytesIO(content), allowance, partial(resolve, allowed=ALLOWED_GLOBALS))

    counted = {("_codecs", "encode"): encode, ("torch.storage", "_load_from_bytes"): load_storage}
    all_allowed = {**ALLOWED_GLOBALS, **counted}

    def resolve(module: str, name: str, allowed: dict = all_allowed):
        if module == "__torch__" or module.startswith("__torch__."):
            return ModuleStub
        replacement = allowed.get((module, name)) or standins.find(module, name)
        if replacement is None:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which weights have no use for; refused, nothing was run. If the file is "
                "your own, save model.state_dict() alone"
            )
        return replacement

    return resolve


def _dtype(storage_type: str) -> str:
    if storage_type not in DTYPES:
        raise pickle.UnpicklingError(f"a storage of kind {storage_type!r}")
    return DTYPES[storage_type]


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _values(content: bytes, storage_type: str, count: int) -> np.ndarray:
    """Return the first `count` numbers of a storage.

    numpy has no bfloat16; its bits are the upper half of a float32, which is returned.
    """
    dtype = _dtype(storage_type)
    values = (
        (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
        if dtype == "bfloat16"
        else np.frombuffer(content, dtype)
    )
    if len(values) < count:
        raise pickle.UnpicklingError("a storage cut short")
    return values[:count]


def _check_jittor_trailer(file: BinaryIO) -> int:
    """Check the SHA-1 that jt.save writes after the pickle and return the trailer's length; 0 if there is none.

    The position of the file is its start before and after. Raises UnpicklingError if the SHA-1 is wrong.
    """
    size, trailer = machine.size(file), hashlib.sha1().digest_size + len(JITTOR_MAGIC)
    file.seek(max(0, size - trailer))
    end = file.read()
    file.seek(0)
    if not end.endswith(JITTOR_MAGIC) or size < trailer:
        return 0
    digest, left = hashlib.sha1(), size - trailer
    while left:
        part = file.read(min(left, 1 << 20))
        digest.update(part)
        left -= len(part)
    if digest.digest() != end[: -len(JITTOR_MAGIC)]:
        raise pickle.UnpicklingError("its checksum does not fit its content")
    file.seek(0)
    return trailer
