"""Turns a PIL image into the array that CLIP's image tower takes; has CLIP's mean and standard deviation."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from . import levels

# of the RGB channels in 0..1; openai/CLIP clip/clip.py, _transform
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])

MAX_ASPECT_RATIO = 100  # up to which the whole image is resized before it is cropped

# (256, 3), the normalised value of each of the 256 levels of each channel
LEVELS = (np.arange(256, dtype=np.float32)[:, None] / 255 - MEAN) / STD


def pixels(image: Image.Image, resolution: int) -> np.ndarray:
    """Preprocess an image as OpenAI's `clip` does.

    The short side is resized to `resolution` (bicubic), the centre is cropped, converted to RGB, scaled to 0..1 and
    normalised by MEAN and STD.

    Parameters
    ----------
    image : PIL image in any mode
    resolution : int, pixels

    Returns
    -------
    array, float32 (3, resolution, resolution)
    """
    return normalised(crop(image, resolution)[None])[0]


def crop(image: Image.Image, resolution: int) -> np.ndarray:
    """Resize, crop and convert an image to RGB: the steps of `pixels` before the normalisation.

    As in OpenAI's code, the conversion to RGB comes last, the resized long side is rounded down, and the corner of the
    crop is rounded to the nearest pixel. EXIF orientation is ignored. Unlike there, greyscale of more than 8 bits is
    scaled to 8 bits first (`levels.eight_bits`).

    Parameters
    ----------
    image : PIL image in any mode
    resolution : int, pixels

    Returns
    -------
    array, uint8 (resolution, resolution, 3)
    """
    image = levels.eight_bits(image)
    short, long = sorted(image.size)
    resize_and_crop = (
        _crop_then_resize if short != resolution and long > MAX_ASPECT_RATIO * short else _resize_then_crop
    )
    return np.asarray(resize_and_crop(image, resolution).convert("RGB"))


def normalised(rgb: np.ndarray) -> np.ndarray:
    """Scale levels to 0..1, subtract MEAN and divide by STD.

    Parameters
    ----------
    rgb : array, uint8 (n, height, width, 3)

    Returns
    -------
    array, float32 (n, 3, height, width)
    """
    out = np.empty((len(rgb), 3, *rgb.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(LEVELS[:, channel], rgb[..., channel], out=out[:, channel])
    return out


def _resize_then_crop(image: Image.Image, side: int) -> Image.Image:
    """Return the square in the centre of the resized image."""
    size, (left, top) = _geometry(image, side)
    if size != image.size:
        image = image.resize(size, Image.BICUBIC)
    return image.crop((left, top, left + side, top + side))


def _crop_then_resize(image: Image.Image, side: int) -> Image.Image:
    """Return the same square, but for rounding, without resizing the rest of a very long image.

    An image of 30,000 x 10 pixels, resized as a whole, would have 672,000 x 224.
    """
    size, corner = _geometry(image, side)
    scales = [old / new for old, new in zip(image.size, size)]
    first = [offset * scale for offset, scale in zip(corner, scales)]  # left and top of the square in the image
    last = [(offset + side) * scale for offset, scale in zip(corner, scales)]  # right and bottom
    # Pillow rounds the box to float32, so it is taken relative to a part of the image that begins close to it.
    start = [max(0, math.floor(value - _filter_reach(scale))) for value, scale in zip(first, scales)]
    end = [
        min(length, math.ceil(value + _filter_reach(scale))) for length, value, scale in zip(image.size, last, scales)
    ]
    box = [value - offset for value, offset in zip([*first, *last], [*start, *start])]
    return image.crop((*start, *end)).resize((side, side), Image.BICUBIC, box=box)


def _geometry(image: Image.Image, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) of the resized image, whose short side is `side`, and (left, top) of the crop in it."""
    short, long = sorted(image.size)
    long = side * long // short
    size = (side, long) if image.width <= image.height else (long, side)
    return size, (round((size[0] - side) / 2), round((size[1] - side) / 2))


def _filter_reach(scale: float) -> float:
    """Return the radius of the bicubic filter in pixels of the original image, and one pixel for rounding."""
    return 2 * max(scale, 1) + 1


class Preprocess:
    """Turns a PIL image into a Jittor Var by `pixels`; `jclip.load` returns one.

    Parameters
    ----------
    resolution : int, side of the result in pixels
    """

    def __init__(self, resolution: int):
        self.resolution = resolution

    def __call__(self, image: Image.Image):
        """Return a float32 Var of shape (3, resolution, resolution); `.unsqueeze(0)` makes it a batch of one."""
        from .runtime import jittor

        return jittor().array(pixels(image, self.resolution)).stop_grad()
