"""A photograph -> the array that CLIP's image tower reads; the only home of CLIP's mean and standard deviation."""
from __future__ import annotations

import numpy as np
from PIL import Image

# Of the RGB channels in 0..1; openai/CLIP clip/clip.py, _transform.
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])


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
    return np.asarray(_centre_crop(_resize_short_side(image, resolution), resolution).convert("RGB"))


def normalised(rgb: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w): levels to 0..1, less the mean, by the standard deviation."""
    out = np.empty((len(rgb), 3, *rgb.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(LEVELS[:, channel], rgb[..., channel], out=out[:, channel])
    return out


def _resize_short_side(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    short, long = sorted(image.size)
    if short == side:
        return image
    long = side * long // short
    return image.resize((side, long) if width <= height else (long, side), Image.BICUBIC)


def _centre_crop(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


class Preprocess:
    """`pixels` at one resolution, as a callable that returns a Jittor Var: what `jclip.load` returns."""

    def __init__(self, resolution: int):
        self.resolution = resolution

    def __call__(self, image: Image.Image):
        """Var of shape (3, resolution, resolution), float32; `.unsqueeze(0)` makes it a batch of one."""
        from .runtime import jittor

        return jittor().array(pixels(image, self.resolution)).stop_grad()
