"""Small signatures of photographs, by which copies are recognised: resized, compressed, mirrored, slightly cropped.

A signature is the photograph at 16 x 16, in colour and in grey, without what a smooth shade (a polynomial of second
degree) explains, and of unit norm: skies and plain backgrounds do not make two photographs alike. Two are compared by
their product, each also with narrow margins of the other cut off, and mirrored.

On 358 photographs of Caltech-101 and 696 of the demo's drawings, those of a contrast of 3 or more, copies of half the
size, mirrored, with 1.5 or 3 % cut off at all sides, and with 10 % more brightness were above LIMIT but for one in
350; in JPEG quality 30 all photographs, and nine of ten drawings. Among the photographs one pair is above it, a copy
indeed; the next, a copy with another background, is at 0.954, and different ones are below 0.87. Two drawings of the
same house are at 0.970.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jclip import levels, opening
from jclip.errors import Unreadable
from jclip.progress import track

LIMIT = 0.972  # of the product, from which two photographs are copies
SIDE = 16  # of a signature
READ_SIDE = 32  # of the pictures of which signatures are made
MIN_CONTRAST = 1.5  # grey levels, standard deviation of what the shade leaves: below, any two photographs are alike
MARGINS = (  # left, top, right, bottom, as shares of the side; the whole picture first
    *((0, 0, 0, 0), (0.015, 0.015, 0.015, 0.015), (0.03, 0.03, 0.03, 0.03)),
    *((0.03, 0.03, 0, 0), (0, 0.03, 0.03, 0), (0.03, 0, 0, 0.03), (0, 0, 0.03, 0.03)),
    *((0.03, 0, 0, 0), (0, 0.03, 0, 0), (0, 0, 0.03, 0), (0, 0, 0, 0.03)),
)
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's


class Small(NamedTuple):
    """Photographs that could be read, by their rows."""

    rows: np.ndarray  # int64 (n,)
    pixels: np.ndarray  # uint8 (n, READ_SIDE, READ_SIDE, 3)


def read(paths: Mapping[int, Path]) -> Small:
    """Return the photographs at {row: path}, small; those that cannot be read are left out."""
    rows, pixels = [], []
    for row, path in track(paths.items(), "looking for copies", " photograph", len(paths), leave=False):
        try:
            with opening.opened(path, READ_SIDE) as image:
                image.draft("RGB", (2 * READ_SIDE, 2 * READ_SIDE))
                whole = levels.eight_bits(image).convert("RGB")
                pixels.append(np.asarray(whole.resize((READ_SIDE, READ_SIDE), resample=3, reducing_gap=2)))
                rows.append(row)
        except Unreadable:  # the report says elsewhere which photographs cannot be read, and why
            continue
    return Small(np.array(rows, np.int64), np.array(pixels, np.uint8).reshape(-1, READ_SIDE, READ_SIDE, 3))


def signatures(pixels: np.ndarray, margins: tuple[float, float, float, float] = MARGINS[0]) -> np.ndarray:
    """Return the signature of each picture of which margins are cut off: float32 (n, 4·SIDE²), 0 without contrast."""
    left, top, right, bottom = margins
    down, across = _shrink(top, bottom), _shrink(left, right)
    colours = np.einsum("sh,nhwc,tw->ncst", down, pixels.astype(np.float32), across, optimize=True)
    grey = np.einsum("c,ncst->nst", GREY, colours)[:, None]
    parts = [_unit(part.reshape(len(pixels), -1, SIDE * SIDE)) for part in (colours, grey)]
    contrast = parts[1][1]
    both = np.concatenate([part for part, _ in parts], axis=1) / np.sqrt(2, dtype=np.float32)
    both[contrast < MIN_CONTRAST] = 0
    return both


def mirrored(signed: np.ndarray) -> np.ndarray:
    """Return the signatures of the mirrored pictures."""
    return signed.reshape(-1, 4, SIDE, SIDE)[..., ::-1].reshape(signed.shape)


def _shrink(first: float, last: float) -> np.ndarray:
    """Return the weights (SIDE, READ_SIDE) that average a line of pixels, but for shares of it at both ends."""
    edges = np.linspace(first, 1 - last, SIDE + 1) * READ_SIDE
    pixel = np.arange(READ_SIDE)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights = np.maximum(overlap, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _unit(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return channels (n, k, SIDE²) without the shade as unit rows (n, k·SIDE²), and their standard deviation (n,)."""
    rest = channels - (channels @ SHADE) @ SHADE.T
    rows = rest.reshape(len(rest), -1)
    norm = np.linalg.norm(rows, axis=1)
    return rows / np.maximum(norm, 1e-6)[:, None], norm / rows.shape[1] ** 0.5


def _shade() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y]).reshape(6, -1)
    return np.linalg.qr(terms.T)[0].astype(np.float32)


SHADE = _shade()  # an orthonormal basis (SIDE², 6) of smooth shades
