"""Opens a photograph with Pillow: which formats are read, how much memory one may take, why one cannot be read."""

from __future__ import annotations

import functools
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from . import levels
from .errors import Unreadable

# Pillow's own limit. Up to it photographs are decoded in full; above it only a JPEG is, at a reduced size.
MAX_PIXELS = 2 * 89_478_485
BYTES_PER_PIXEL = 4  # Pillow's, of a decoded RGB photograph
MAX_BYTES = BYTES_PER_PIXEL * MAX_PIXELS  # that the decoding of one photograph may take

HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
HEIF_REMEDY = "HEIC is read where pillow-heif is installed: pip install pillow-heif"
# at byte 8 of a file with "ftyp" at byte 4
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), HEIF_REMEDY),
    **dict.fromkeys((b"avif", b"avis"), "AVIF is read by Pillow 11.3 and later: pip install --upgrade Pillow"),
}
# of formats that have no greyscale of more than 8 bits
EIGHT_BIT_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", *HEIF_SUFFIXES}
# the first bytes of formats, those of nearly all photographs, that have no greyscale of more than 8 bits; HEIC and AVIF
# ("ftyp") are brought to 8 bits by Pillow
EIGHT_BIT_HEADERS = (b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
# JPEG markers
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


@contextmanager
def opened(path: Path | str, min_side: int) -> Iterator[Image.Image]:
    """Open a photograph for a `with` block; whatever Pillow raises in the block becomes Unreadable.

    Parameters
    ----------
    path : Path or str
    min_side : int, pixels
        A JPEG above MAX_PIXELS is decoded at 1/2, 1/4 or 1/8 of its size, but its short side stays at least as long.

    Yields
    ------
    PIL image
        Not decoded yet.

    Raises
    ------
    Unreadable
        With the cause: no file, no image, damaged, too large.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a file")  # reading a pipe would block forever
        register_heif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about defects that Pillow can handle
            with _open(path, min_side) as image:
                yield image
    except UnidentifiedImageError:
        raise Unreadable("empty" if not status.st_size else missing_support(path) or "not an image") from None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow may raise any exception for a damaged file
        raise Unreadable(f"{type(error).__name__}: {error}") from None


@functools.cache
def register_heif() -> str | None:
    """Let Pillow read HEIC where the package pillow-heif is installed; return its version, or None.

    A reading process calls it for itself.
    """
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.register_heif_opener()
    return pillow_heif.__version__


def missing_support(path: Path | str) -> str | None:
    """Return what must be installed to read a file that Pillow cannot identify, or None if it is no photograph."""
    header = b""
    try:
        if os.path.isfile(path):  # opening a pipe would wait for ever
            with open(path, "rb") as file:
                header = file.read(12)
    except OSError:  # no permission: the suffix has to do
        pass
    remedy = BRANDS.get(header[8:]) if header[4:8] == b"ftyp" else None
    if remedy is None and os.path.splitext(path)[1].lower() in HEIF_SUFFIXES:
        remedy = HEIF_REMEDY
    return None if remedy == HEIF_REMEDY and register_heif() else remedy


def is_deep(path: Path | str) -> bool:
    """Return whether a file is a greyscale picture of more than 8 bits (`levels.eight_bits`); False if unreadable.

    A file named like a JPEG is not opened: on a cold disk, opening 100,000 files takes minutes.
    """
    if os.path.splitext(path)[1].lower() in EIGHT_BIT_SUFFIXES or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(26)
        if header.startswith(EIGHT_BIT_HEADERS) or header[4:8] == b"ftyp":
            return False
        if header.startswith(b"\x89PNG"):  # bit depth and colour type
            return header[24:26] == b"\x10\x00"
        with opened(path, 1) as image:
            return levels.is_deep(image)
    except (OSError, Unreadable):
        return False


def _open(path: Path | str, min_side: int) -> Image.Image:
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        return _open_large(path, min_side)


def _open_large(path: Path | str, min_side: int) -> Image.Image:
    """Open a photograph above MAX_PIXELS, prepared to be decoded at a reduced size; raise Unreadable if it cannot."""
    try:
        image = _open_of_any_size(path)
    except Image.DecompressionBombError as error:  # of a reader with a limit of its own, such as that of WebP
        raise Unreadable(f"{error}; save it smaller") from None
    width, height = image.size
    reason = "only a JPEG may be larger"
    if image.format in ("JPEG", "MPO"):  # MPO: a JPEG with a second picture behind it
        image.draft(image.mode, (min_side, min_side))
        needed = image.width * image.height * BYTES_PER_PIXEL + _coefficient_bytes(image, width * height)
        if needed <= MAX_BYTES:
            return image
        reason = f"decoding this JPEG takes {needed / 1e6:.0f} MB, above {MAX_BYTES / 1e6:.0f} MB"
    image.close()
    raise Unreadable(
        f"{width} x {height} is {width * height / 1e6:.0f} megapixels, above the limit of {MAX_PIXELS / 1e6:.0f}; "
        f"{reason}; save it smaller"
    )


def _open_of_any_size(path: Path | str) -> Image.Image:
    """Do what Image.open does, without its check of the size."""
    with open(path, "rb") as file:
        prefix = file.read(16)
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        if accept and accept(prefix) is not True:
            continue
        try:
            return factory(path, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open: it is another format
            continue
    raise UnidentifiedImageError("cannot identify the image file")


def _coefficient_bytes(image: Image.Image, pixels: int) -> int:
    """Return the memory that libjpeg takes for coefficients: 0 where it decodes row by row.

    A progressive file, or one with a scan of its own for each channel, is held as a whole, whatever size it is decoded
    at.
    """
    if "progressive" not in image.info and _channels_of_first_scan(image.filename) == image.layers:
        return 0
    factors = [(vertical, horizontal) for _, vertical, horizontal, _ in image.layer]
    largest = max(1, max(v for v, _ in factors)) * max(1, max(h for _, h in factors))
    return 2 * pixels * sum(v * h for v, h in factors) // largest


def _channels_of_first_scan(path: Path | str) -> int:
    """Return the number of channels in the first scan of a JPEG, 0 if there is none."""
    with open(path, "rb") as file:
        file.seek(2)
        while True:
            head = file.read(2)
            while head[1:] == b"\xff":  # a filling byte
                head = head[1:] + file.read(1)
            length = file.read(2)
            if len(length) < 2 or head[0] != 0xFF or head[1] == END_OF_IMAGE:
                return 0
            if head[1] == START_OF_SCAN:
                return (file.read(1) or b"\0")[0]
            file.seek(int.from_bytes(length, "big") - 2, os.SEEK_CUR)
