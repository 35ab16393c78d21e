"""A photograph -> the array that CLIP's image tower reads; the only home of CLIP's mean and standard deviation."""
from __future__ import annotations

import numpy as np
from PIL import Image

# Of the RGB channels in 0..1; openai/CLIP clip/clip.py, _transform.
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])


def pixels(image: Image.Image, resolution: int) -> np.ndarray:
    """OpenAI's pipeline: short side to `resolution` (bicubic), centre crop, RGB, 0..1, normalised.

    The order is OpenAI's (RGB comes after the resizing), and so are the roundings: the long side is rounded down, the
    corner of the crop to the nearest whole pixel. EXIF orientation is not looked at.

    Returns
    -------
    float32 array of shape (3, resolution, resolution)
    """
    image = _centre_crop(_resize_short_side(image, resolution), resolution).convert("RGB")
    rgb = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(((rgb - MEAN) / STD).transpose(2, 0, 1))


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

        return jittor().array(self.pixels(image)).stop_grad()

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The same as a numpy array, for threads that must not touch Jittor."""
        return pixels(image, self.resolution)
