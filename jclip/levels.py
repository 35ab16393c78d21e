"""Greyscale pictures of more than 8 bits brought to 8: 16 bits, 32 bits, floating point (medicine, astronomy, maps).

Pillow, and so OpenAI's code, cuts what is above 255 off when it converts such a picture, which leaves it white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

DEEP_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}  # Pillow's; colour pictures of 16 bits it brings to 8 itself
MAX_8_BITS = 255  # a picture without higher values is taken as it is
MAX_12_BITS = 4095
WHITES = (2**14 - 1, 2**16 - 1)  # the value that becomes white in pictures of 14 and 16 bits
STRIP = 1 << 20  # pixels that are scaled at a time, so that a large picture takes little memory


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture has more levels of grey than 8 bits hold."""
    return image.mode in DEEP_MODES


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale a greyscale picture of more than 8 bits to 8; return any other picture as it is.

    Parameters
    ----------
    image : PIL image in any mode

    Returns
    -------
    PIL image
        In mode L for a mode of DEEP_MODES. Whole numbers up to 255 stay. The least and the greatest value of 12-bit
        pictures (a maximum below 4096) and of floating-point pictures become black and white; in 14-bit and 16-bit
        pictures these are 0 and 16,383 or 65,535. NaN becomes black; infinite values become black and white. A
        floating-point picture from 0 to 255 needs no scaling and stays in its mode.
    """
    if not is_deep(image):
        return image
    values = np.asarray(image)
    black, white = _range_of_values(values)
    if image.mode == "F" and (black, white) == (0, MAX_8_BITS) and np.isfinite(values).all():
        return image
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(1, image.width))
    for start in range(0, image.height, rows):
        levels[start : start + rows] = _scaled(values[start : start + rows], black, white)
    return Image.fromarray(levels)


def _range_of_values(values: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white."""
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        lowest = float(np.min(values, where=finite, initial=np.inf))
        highest = float(np.max(values, where=finite, initial=-np.inf))
        return (lowest, highest) if lowest <= highest else (0.0, 1.0)
    lowest, highest = int(values.min()), int(values.max())
    if lowest >= 0 and highest <= MAX_8_BITS:
        return 0, MAX_8_BITS
    if lowest < 0 or highest <= MAX_12_BITS or highest > WHITES[-1]:
        return lowest, highest
    return 0, next(white for white in WHITES if highest <= white)


def _scaled(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Map black..white to 0..255 and return uint8; a picture of a single value becomes black."""
    # in float64: the difference of two float32 values may be infinite
    scaled = (values.astype(np.float64) - black) * (255 / (white - black) if white > black else 0.0)
    return np.rint(np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)).astype(np.uint8)
