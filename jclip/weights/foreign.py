"""Says what a file is that holds no weights: a web page, a pointer to the weights, half of a download, …"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

UNFINISHED = (".crdownload", ".part", ".partial", ".download", ".opdownload", ".incomplete", ".aria2", ".tmp")
AGAIN = "download it again"
ARCHIVES = {  # first bytes -> name
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "zstd",
}
OTHERS = {  # first bytes -> name
    b"\x89HDF": "an HDF5 file, as TensorFlow and Keras write it",
    b"GGUF": "a GGUF file",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
}
# the beginning of a page, after any comments and an XML declaration
HTML = re.compile(
    r"(?:<!--.*?-->\s*)*(?:<\?xml.*?\?>\s*)?<(?:!doctype html|html|head|body|meta|script|title)\b",
    re.IGNORECASE | re.DOTALL,
)


def describe(path: Path) -> str | None:
    """Return what a file is that could not be read as weights, and what to do; None if that is not known.

    Parameters
    ----------
    path : Path
    """
    try:
        with open(path, "rb") as file:
            start = file.read(1 << 10)
    except OSError:
        return None
    if path.suffix.lower() in UNFINISHED:
        return f"an unfinished download ({path.suffix}); let it finish, or {AGAIN}"
    if not start:
        return f"an empty file; {AGAIN}"
    if not start.strip(b"\0"):
        return f"a file that begins with zeros, as an interrupted download does; {AGAIN}"
    if start.startswith(b"PK"):
        return _describe_zip(path)
    for magic, name in ARCHIVES.items():
        if start.startswith(magic):
            return f"a {name} archive; unpack it and give what is in it"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and give what is in it"
    return next((name for magic, name in OTHERS.items() if start.startswith(magic)), None) or _describe_text(start)


def unfinished(path: Path) -> str:
    """Return "; …" for an error message if a download of a missing file has begun, else ""."""
    parts = [path.with_name(path.name + suffix) for suffix in UNFINISHED]
    part = next((part for part in parts if part.is_file()), None)
    return f"; {part} is an unfinished download of it" if part else ""


def _describe_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, MemoryError):
        return f"cut short: the end of its archive is missing, as after an interrupted download; {AGAIN}"
    if any(name.split("/")[-1] == "data.pkl" or name.endswith(".npy") for name in names):
        return None
    more = ", …" * (len(names) > 3)
    return f"a zip archive of other files ({', '.join(names[:3])}{more}); if the weights are in it, unpack it"


def _describe_text(start: bytes) -> str | None:
    """Return what a text is; None for what is no text."""
    is_utf16 = start.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = start.decode("utf-16" if is_utf16 else "utf-8-sig", "replace").strip()
    if text.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d{1,15})\s*$", text, re.MULTILINE)
        of = f" of {size[1]} bytes" if size else ""
        return f"a Git LFS pointer to weights{of}, not the weights; run git lfs pull where it was cloned, or {AGAIN}"
    if HTML.match(text):
        return "an HTML page, such as a login or an error, saved in the place of weights; download the file itself"
    if any(ord(c) < 32 and c not in "\t\n\r\f" for c in text) or text.count("\ufffd") > len(text) // 20:
        return None
    if text.startswith(("<", "{", "[")):
        kind = "XML" if text.startswith("<") else "JSON"
        return f"{kind} text, such as an error of a server, in the place of weights; download the file itself"
    return f"a text file, which begins {text[:40]!r}; download the weights themselves"
