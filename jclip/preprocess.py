"""Turns a PIL image into the array that CLIP's image tower takes; has CLIP's mean and standard deviation."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from . import levels

# of the RGB channels in 0..1; openai/CLIP clip/clip.py, _transform
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

MAX_ASPECT_RATIO = 100  # up to which the whole image is resized before it is cropped
FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}
RESIZE_MODES = ("shortest", "squash", "longest")


@dataclass(frozen=True)
class PreprocessConfig:
    """How the images of a model are preprocessed; the names are those of open_clip's preprocess_cfg.

    Attributes
    ----------
    mean, std : tuple of three floats, of the RGB channels in 0..1
    interpolation : "bicubic" or "bilinear"
    resize_mode : str
        "shortest" brings the short side to `size` and crops the centre, "squash" brings both sides to `size`, and
        "longest" the long side and fills the rest with `fill_color`.
    size : int or None
        In pixels; None means the model's resolution. The centre is cropped if it is larger.
    fill_color : int, a level from 0 to 255
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    size: int | None = None
    fill_color: int = 0

    @property
    def levels(self) -> np.ndarray:
        """The normalised value of each of the 256 levels of each channel, float32 (256, 3)."""
        return _levels(self.mean, self.std)


@functools.cache
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    return (np.arange(256, dtype=np.float32)[:, None] / 255 - np.float32(mean)) / np.float32(std)


OPENAI = PreprocessConfig()
LEVELS = OPENAI.levels


def pixels(image: Image.Image, resolution: int, config: PreprocessConfig = OPENAI) -> np.ndarray:
    """Preprocess an image, by default as OpenAI's `clip` does.

    There, the short side is resized to `resolution` (bicubic), the centre is cropped, converted to RGB, scaled to 0..1
    and normalised by MEAN and STD.

    Parameters
    ----------
    image : PIL image in any mode
    resolution : int, pixels
    config : PreprocessConfig

    Returns
    -------
    array, float32 (3, resolution, resolution)
    """
    return normalised(crop(image, resolution, config)[None], config.levels)[0]


def crop(image: Image.Image, resolution: int, config: PreprocessConfig = OPENAI) -> np.ndarray:
    """Resize, crop and convert an image to RGB: the steps of `pixels` before the normalisation.

    As in OpenAI's code, the conversion to RGB comes last, the resized long side is rounded down, and the corner of the
    crop is rounded to the nearest pixel. EXIF orientation is ignored. Unlike there, greyscale of more than 8 bits is
    scaled to 8 bits first (`levels.eight_bits`).

    Parameters
    ----------
    image : PIL image in any mode
    resolution : int, pixels
    config : PreprocessConfig

    Returns
    -------
    array, uint8 (resolution, resolution, 3)
    """
    image = levels.eight_bits(image)
    size, resampling = config.size or resolution, FILTERS[config.interpolation]
    if config.resize_mode == "squash":
        image = _centre(image.resize((size, size), resampling), resolution)
    elif config.resize_mode == "longest":
        image = _resize_and_pad(image, size, resampling, config.fill_color)
    else:
        short, long = sorted(image.size)
        resize_and_crop = _crop_then_resize if short != size and long > MAX_ASPECT_RATIO * short else _resize_then_crop
        image = resize_and_crop(image, size, resolution, resampling)
    return np.asarray(image.convert("RGB"))


def normalised(rgb: np.ndarray, levels: np.ndarray = LEVELS) -> np.ndarray:
    """Replace the levels of pixels by their normalised values: scaled to 0..1, minus the mean, by the deviation.

    Parameters
    ----------
    rgb : array, uint8 (n, height, width, 3)
    levels : array, float32 (256, 3), of `PreprocessConfig.levels`

    Returns
    -------
    array, float32 (n, 3, height, width)
    """
    out = np.empty((len(rgb), 3, *rgb.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(levels[:, channel], rgb[..., channel], out=out[:, channel])
    return out


def _resize_and_pad(image: Image.Image, side: int, resampling: int, fill: int) -> Image.Image:
    """Return the image with its long side resized to `side`, on a square; open_clip's "longest"."""
    ratio = max(image.size) / side
    image = image.resize([max(1, round(length / ratio)) for length in image.size], resampling)
    missing = [side - length for length in image.size]
    border = *(n // 2 for n in missing), *((n + 1) // 2 for n in missing)  # left, top, right, bottom
    bands = len(image.getbands())
    padded = ImageOps.expand(image, border, fill if bands == 1 else (fill,) * bands)
    if image.mode == "P":  # the fill is an index of the palette, as in torchvision
        padded.putpalette(image.getpalette())
    return padded


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Return the square in the centre of an image, whose corner is rounded to the nearest pixel."""
    left, top = (round((length - side) / 2) for length in image.size)
    return image if image.size == (side, side) else image.crop((left, top, left + side, top + side))


def _resize_then_crop(image: Image.Image, size: int, side: int, resampling: int) -> Image.Image:
    """Return the square in the centre of the resized image."""
    resized = _resized_size(image, size)
    return _centre(image if resized == image.size else image.resize(resized, resampling), side)


def _crop_then_resize(image: Image.Image, size: int, side: int, resampling: int) -> Image.Image:
    """Return the same square, but for rounding, without resizing the rest of a very long image.

    An image of 30,000 x 10 pixels, resized as a whole, would have 672,000 x 224.
    """
    resized = _resized_size(image, size)
    corner = [round((length - side) / 2) for length in resized]
    scales = [old / new for old, new in zip(image.size, resized)]
    first = [offset * scale for offset, scale in zip(corner, scales)]  # left and top of the square in the image
    last = [(offset + side) * scale for offset, scale in zip(corner, scales)]  # right and bottom
    # Pillow rounds the box to float32, so it is taken relative to a part of the image that begins close to it.
    start = [max(0, math.floor(value - _filter_reach(scale))) for value, scale in zip(first, scales)]
    end = [
        min(length, math.ceil(value + _filter_reach(scale))) for length, value, scale in zip(image.size, last, scales)
    ]
    box = [value - offset for value, offset in zip([*first, *last], [*start, *start])]
    return image.crop((*start, *end)).resize((side, side), resampling, box=box)


def _resized_size(image: Image.Image, size: int) -> tuple[int, int]:
    """Return (width, height) of the image once its short side is `size`; the long side is rounded down."""
    short, long = sorted(image.size)
    long = size * long // short
    return (size, long) if image.width <= image.height else (long, size)


def _filter_reach(scale: float) -> float:
    """Return the radius of the bicubic filter in pixels of the original image, and one pixel for rounding."""
    return 2 * max(scale, 1) + 1


class Preprocess:
    """Turns a PIL image into a Jittor Var by `pixels`; `jclip.load` returns one.

    Parameters
    ----------
    resolution : int, side of the result in pixels
    config : PreprocessConfig
    """

    def __init__(self, resolution: int, config: PreprocessConfig = OPENAI):
        self.resolution, self.config = resolution, config

    def __call__(self, image: Image.Image):
        """Return a float32 Var of shape (3, resolution, resolution); `.unsqueeze(0)` makes it a batch of one."""
        from .runtime import jittor

        return jittor().array(pixels(image, self.resolution, self.config)).stop_grad()
