"""Files from strangers: what a file declares is checked against the file before memory is taken for it.

Zip archives, .npz and JSON; readers of `fewshot` and `jclip` stand on these. All raise one of DAMAGE; who reads names
the file and says what to do.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

RATIO, SLACK = (
    20,
    64 << 20,
)  # an archive may unpack to SLACK bytes and RATIO times itself; features and weights hardly shrink at all
CHUNK = 1 << 20
JSON_BYTES, JSON_DEPTH, JSON_DIGITS = 16 << 20, 32, 20
MESSAGE = 1900  # characters of an error
DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)

# numpy's own spelling of a header, for numbers and text alone: objects and structures do not fit it, and nothing is
# evaluated
_HEADER = re.compile(
    r"\{'descr': '([<>|=](?:b1|[iu][1248]|f[248]|U[1-9][0-9]{0,7}))', 'fortran_order': (True|False), "
    r"'shape': \(((?:[0-9]{1,15}, ?)*(?:[0-9]{1,15})?)\),? ?\}\s*"
)


def archive(file: BinaryIO) -> zipfile.ZipFile:
    """An open zip archive whose members are stored or deflated, differ in name, and unpack to a size that fits the
    file's own."""
    size = file.seek(0, 2)
    file.seek(0)
    opened = zipfile.ZipFile(file)
    members = opened.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("two members of its archive have one name")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise ValueError(f"{member.filename} is encrypted, or packed in a way that numpy and torch do not use")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} declares two sizes")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("the members of its archive overlap or are cut short")
    unpacked = sum(member.file_size for member in members)
    if unpacked > SLACK + RATIO * size:
        raise ValueError(f"{size} bytes that declare {unpacked} unpacked; if it is what you want, save it uncompressed")
    return opened


def member(opened: zipfile.ZipFile, name: str) -> bytearray:
    """The content of a member, of the size that it declares; its CRC is checked."""
    content = bytearray(opened.getinfo(name).file_size)
    with opened.open(name) as file:
        for start in range(0, len(content), CHUNK):
            part = memoryview(content)[start : start + CHUNK]
            if file.readinto(part) < len(part):
                raise EOFError(f"{name} is cut short")
    return content


def npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an .npz: numbers and text, in any byte order and memory order, never pickled objects."""
    with archive(file) as opened:
        return {name[: -len(".npy")]: _array(name, member(opened, name)) for name in opened.namelist()}


def _array(name: str, content: bytearray) -> np.ndarray:
    """An .npy file's array, on the very bytes of the file."""
    if not name.endswith(".npy") or content[:6] != b"\x93NUMPY":
        raise ValueError(f"{name} is no array of numpy's")
    width = 2 if content[6] == 1 else 4  # bytes of the header's length, by format version
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    header = _HEADER.fullmatch(content[8 + width : start].decode("latin1"))
    if not header or start > len(content):
        raise ValueError(f"{name}: a header other than numpy's of numbers or text (objects are not read)")
    dtype, shape = np.dtype(header[1]), tuple(int(n) for n in header[3].split(",") if n.strip())
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(
            f"{name}: shape {shape} of {dtype} declares {math.prod(shape) * dtype.itemsize} bytes, but "
            f"{len(content) - start} are there"
        )
    if (
        dtype.kind == "U"
        and np.ndarray((len(content) - start) // 4, dtype.str[0] + "u4", content, start).max(initial=0) > sys.maxunicode
    ):
        raise ValueError(f"{name}: numbers that are no characters")
    return np.ndarray(shape, dtype, content, start, order="F" if header[2] == "True" else "C")


def json_value(text: str):
    """What a JSON text holds, if it could be written again: of bounded size, depth and numbers, no key twice, no half
    characters."""
    if len(text) > JSON_BYTES:
        raise ValueError(f"JSON of {len(text)} characters, expected at most {JSON_BYTES}")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"JSON nested more than {JSON_DEPTH} deep") from None
    level = [value]
    for _ in range(JSON_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"JSON nested more than {JSON_DEPTH} deep")
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return value


def _object(pairs: list) -> dict:
    found: dict = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands twice")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def content(path: Path, most: int) -> bytes:
    """A file's bytes; ValueError where there are more than `most`."""
    with open(path, "rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"larger than {most} bytes")
    return found


def one_line(message: str) -> str:
    """`message` as one printable line of bounded length, whatever a file has smuggled into it."""
    if len(message) > MESSAGE:
        message = f"{message[: MESSAGE - 400]} … {message[-390:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
