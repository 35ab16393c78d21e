"""Readers of untrusted files: what a file declares is checked against its real size before memory is allocated.

They read zip archives, .npz and JSON for `jclip` and `fewshot`. Every error is one of DAMAGE; the caller names the file
and says what to do.
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

# An archive may unpack to SLACK bytes plus RATIO times its own size; features and weights hardly compress at all.
RATIO, SLACK = 20, 64 << 20
CHUNK = 1 << 18  # bytes read at a time; they stay in the cache of a core until they are checked
JSON_BYTES, JSON_DEPTH, JSON_DIGITS = 16 << 20, 32, 20  # largest JSON text, nesting and whole number
MESSAGE = 1900  # characters of an error message
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

# The header of an .npy file exactly as numpy writes it, for arrays of numbers or text. Object and structured arrays do
# not match. numpy's own reader evaluates the header as a Python literal; this one evaluates nothing.
_HEADER = re.compile(
    r"\{'descr': '([<>|=](?:b1|[iu][1248]|f[248]|U[1-9][0-9]{0,7}))', 'fortran_order': (True|False), "
    r"'shape': \(((?:[0-9]{1,15}, ?)*(?:[0-9]{1,15})?)\),? ?\}\s*"
)


def archive(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip archive after checking its directory.

    Parameters
    ----------
    file : binary file, seekable

    Returns
    -------
    zipfile.ZipFile
        Its members are stored or deflated and have different names. Together they unpack to at most SLACK + RATIO times
        the size of the file.

    Raises
    ------
    One of DAMAGE
        If the file is not such an archive.
    """
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
    """Read a member of an archive that `archive` opened, and check its CRC.

    Raises one of DAMAGE if the member is missing, damaged or shorter than declared.
    """
    content = bytearray(opened.getinfo(name).file_size)
    with opened.open(name) as file:
        for start in range(0, len(content), CHUNK):
            part = memoryview(content)[start : start + CHUNK]
            if file.readinto(part) < len(part):
                raise EOFError(f"{name} is cut short")
    return content


def npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file.

    Parameters
    ----------
    file : binary file, seekable

    Returns
    -------
    dict of str to array
        Arrays of numbers or text, in any byte order and memory order.

    Raises
    ------
    One of DAMAGE
        If the file is damaged, or holds pickled objects or structured arrays.
    """
    with archive(file) as opened:
        return {name[: -len(".npy")]: _array(name, member(opened, name)) for name in opened.namelist()}


def _array(name: str, content: bytearray) -> np.ndarray:
    """Return the array of an .npy file as a view of its bytes `content`."""
    if not name.endswith(".npy") or content[:6] != b"\x93NUMPY":
        raise ValueError(f"{name} is no array of numpy's")
    width = 2 if content[6] == 1 else 4  # bytes of the header's length, by format version
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    header = _HEADER.fullmatch(content[8 + width : start].decode("latin1"))
    if not header or start > len(content):
        raise ValueError(f"{name}: a header other than numpy's of numbers or text (objects are not read)")
    dtype, shape = np.dtype(header[1]), tuple(int(n) for n in header[3].split(",") if n.strip())
    declared, available = math.prod(shape) * dtype.itemsize, len(content) - start
    if declared != available:
        raise ValueError(f"{name}: shape {shape} of {dtype} declares {declared} bytes, but {available} are there")
    if dtype.kind == "U":
        characters = np.ndarray(available // 4, dtype.str[0] + "u4", content, start)
        if characters.max(initial=0) > sys.maxunicode:
            raise ValueError(f"{name}: numbers that are no characters")
    return np.ndarray(shape, dtype, content, start, order="F" if header[2] == "True" else "C")


def json_value(text: str):
    """Parse a JSON text of bounded size, depth and number length.

    Raises ValueError if the text is no JSON, exceeds JSON_BYTES, JSON_DEPTH or JSON_DIGITS, repeats a key, or holds
    what could not be written again: NaN, an infinite number or half of a surrogate pair.
    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"JSON of {len(text)} characters, expected at most {JSON_BYTES}")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)
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
    """Return the dict of a JSON object; raise ValueError if a key is repeated."""
    values: dict = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} stands twice")
        values[key] = value
    return values


def _whole_number(digits: str) -> int:
    """Return int(digits), whose time grows with the square of the length."""
    if len(digits) > JSON_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def content(path: Path, most: int) -> bytes:
    """Return the bytes of a file; raise ValueError if there are more than `most`."""
    with open(path, "rb") as file:
        read = file.read(most + 1)
    if len(read) > most:
        raise ValueError(f"larger than {most} bytes")
    return read


def one_line(message: str) -> str:
    """Return `message` as one line of printable characters, at most MESSAGE of them before they are escaped.

    A message may quote what a file holds: line breaks, control characters of the terminal, megabytes.
    """
    if len(message) > MESSAGE:
        message = f"{message[: MESSAGE - 400]} … {message[-390:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
