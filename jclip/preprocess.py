"""A photograph -> the array that CLIP's image tower reads; the only home of CLIP's mean and standard deviation."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# Of the RGB channels in 0..1; openai/CLIP clip/clip.py, _transform.
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])

LONGEST = 100  # long sides per short side up to which an image is resized as a whole

# what becomes of each of the 256 levels of each channel, (256, 3)
LEVELS = (np.arange(256, dtype=np.float32)[:, None] / 255 - MEAN) / STD


def pixels(image: Image.Image, resolution: int) -> np.ndarray:
    """OpenAI's pipeline: short side to `resolution` (bicubic), centre crop, RGB, 0..1, normalised.

    Returns float32 of shape (3, resolution, resolution).
    """
    return normalised(crop(image, resolution)[None])[0]


def crop(image: Image.Image, resolution: int) -> np.ndarray:
    """The part of the pipeline that works on whole levels: resized, cropped, RGB; uint8 (resolution, resolution, 3).

    The order is OpenAI's (RGB comes after the resizing), and so are the roundings: the long side is rounded down, the
    corner of the crop to the nearest whole pixel. EXIF orientation is not looked at.
    """
    short, long = sorted(image.size)
    cropped = _centre_of_long if short != resolution and long > LONGEST * short else _centre_crop
    return np.asarray(cropped(image, resolution).convert("RGB"))


def normalised(rgb: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w): levels to 0..1, less the mean, by the standard deviation."""
    out = np.empty((len(rgb), 3, *rgb.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(LEVELS[:, channel], rgb[..., channel], out=out[:, channel])
    return out


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    size, corner = _geometry(image, side)
    if size != image.size:
        image = image.resize(size, Image.BICUBIC)
    left, top = corner
    return image.crop((left, top, left + side, top + side))


def _centre_of_long(image: Image.Image, side: int) -> Image.Image:
    """The same, but for rounding, without the rest of the resized image: of 30,000 x 10 pixels it has 672,000 x 224."""
    size, corner = _geometry(image, side)
    scales = [old / new for old, new in zip(image.size, size)]
    first = [at * scale for at, scale in zip(corner, scales)]
    last = [(at + side) * scale for at, scale in zip(corner, scales)]
    # Pillow holds a box in float32: near the origin of a small image it is exact enough
    start = [max(0, math.floor(at - _reach(scale))) for at, scale in zip(first, scales)]
    end = [min(length, math.ceil(at + _reach(scale))) for length, at, scale in zip(image.size, last, scales)]
    box = [at - offset for at, offset in zip([*first, *last], [*start, *start])]
    return image.crop((*start, *end)).resize((side, side), Image.BICUBIC, box=box)


def _geometry(image: Image.Image, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of the image whose short side is `side`, and (left, top) of the square in its middle."""
    short, long = sorted(image.size)
    long = side * long // short
    size = (side, long) if image.width <= image.height else (long, side)
    return size, (round((size[0] - side) / 2), round((size[1] - side) / 2))


def _reach(scale: float) -> float:
    """How far from its centre, in pixels of the original, the bicubic filter looks; and one for rounding."""
    return 2 * max(scale, 1) + 1


class Preprocess:
    """`pixels` at one resolution, as a callable that returns a Jittor Var: what `jclip.load` returns."""

    def __init__(self, resolution: int):
        self.resolution = resolution

    def __call__(self, image: Image.Image):
        """Var of shape (3, resolution, resolution), float32; `.unsqueeze(0)` makes it a batch of one."""
        from .runtime import jittor

        return jittor().array(pixels(image, self.resolution)).stop_grad()
