"""Thumbnails of photographs for the report: squares as CLIP sees them, WebP in base64, within a limit for all."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, features

from jclip import levels, opening, preprocess
from jclip.errors import Unreadable
from jclip.progress import track

SIDE = 160  # pixels
SMALLER = (SIDE, 128, 96, 64)  # sides that are tried until a thumbnail is within its share of MAX_BYTES
QUALITIES = (72, 50, 30)
MAX_BYTES = 24_000_000  # of all thumbnails; base64 makes 32 MB of them
MAX_SHARE = 12_000  # bytes of one thumbnail, where there are few


def thumbnails(paths: Sequence[Path | None]) -> Iterator[str]:
    """Yield the data URI of a thumbnail of each photograph, or "" where there is none or it cannot be read.

    Photographs are read one after the other, so memory does not grow with their number.

    Parameters
    ----------
    paths : sequence of Path or None
    """
    share = min(MAX_SHARE, MAX_BYTES // max(1, len(paths)))
    for path in track(paths, "thumbnails", " photograph", len(paths), leave=False):
        try:
            yield data_uri(read_square(path), share) if path else ""
        except Unreadable:  # the report says elsewhere which photographs cannot be read, and why
            yield ""


def read_square(path: Path) -> np.ndarray:
    """Return uint8 (SIDE, SIDE, 3), the square of a photograph that CLIP sees; raise Unreadable with the cause."""
    with opening.opened(path, SIDE) as image:
        image.draft("RGB", (SIDE, SIDE))  # decodes a large JPEG at a reduced size, at least as large as this
        return preprocess.crop(levels.eight_bits(image), SIDE)


def data_uri(pixels: np.ndarray, max_bytes: int) -> str:
    """Return pixels (h, w, 3) as a data URI of at most max_bytes before base64, if the smallest thumbnail allows it."""
    image, kind = Image.fromarray(pixels), "WEBP" if features.check("webp") else "JPEG"
    for side in SMALLER:
        scaled = image if side == image.width else image.resize((side, side), Image.BICUBIC)
        for quality in QUALITIES:
            file = io.BytesIO()
            scaled.save(file, kind, quality=quality)
            if file.tell() <= max_bytes:
                return _uri(kind, file)
    return _uri(kind, file)


def _uri(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
