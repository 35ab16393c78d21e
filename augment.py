"""Views of one photograph: each a pure function of a PIL image and a numpy Generator.

Those of a shot are random. Their strengths are those usual for few-shot work on CLIP; `crop` is the one that
Tip-Adapter builds its cache from (arXiv:2207.09519; RandomResizedCrop with scale 0.5 to 1, and a random flip). Those of
a test photograph, whose features are averaged, are always the same: a mirror image, and five crops (Krizhevsky et al.,
NeurIPS 2012, section 4.1).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

DEFAULT_VIEWS = "plain,flip,jitter,crop"
MAX_VIEWS = 64  # of a shot; each costs as much as another photograph
CROP_AREA = (0.5, 1.0)  # of the photograph's area
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
CROP_TRIES = 10  # torchvision's; a very long photograph holds no box of these shapes
CORNER = 7 / 8  # side of a test photograph's crops, of the photograph's shorter side: 224 of 256 pixels


def plain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the photograph as it is."""
    return image


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left to right, and change brightness and contrast by up to 20 %."""
    return _enhanced(ImageOps.mirror(image.convert("RGB")), rng, 0.2, ImageEnhance.Brightness, ImageEnhance.Contrast)


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation by up to 40 %, and turn the hue by up to a tenth of the circle."""
    image = _enhanced(
        image.convert("RGB"), rng, 0.4, ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    )
    hue, saturation, value = image.convert("HSV").split()
    turn = int(round(rng.uniform(-0.1, 0.1) * 256))
    hue = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut out a box of half to all of the area, 3:4 to 4:3, resize it to a square, and mirror it in half of all cases.

    The side of the square is the longer one of the box; CLIP's preprocessing brings it to the model's resolution.
    """
    image = image.convert("RGB")
    box = _random_box(*image.size, rng)
    side = max(box[2] - box[0], box[3] - box[1])
    image = image.resize((side, side), Image.BICUBIC, box=box)
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left to right."""
    return ImageOps.mirror(image.convert("RGB"))


def square(image: Image.Image, rng: np.random.Generator, across: float, down: float) -> Image.Image:
    """Cut out the square at these fractions of the way from left to right and from top to bottom."""
    width, height = image.size
    side = max(1, round(CORNER * min(width, height)))
    left, top = round(across * (width - side)), round(down * (height - side))
    return image.convert("RGB").crop((left, top, left + side, top + side))


VIEWS = {"plain": plain, "flip": flip, "jitter": jitter, "crop": crop}  # of a shot
SQUARES = {
    "centre": partial(square, across=0.5, down=0.5),
    "top left": partial(square, across=0, down=0),
    "top right": partial(square, across=1, down=0),
    "bottom left": partial(square, across=0, down=1),
    "bottom right": partial(square, across=1, down=1),
}
TEST_VIEWS = {"plain": ("plain",), "mirror": ("mirror",), "crops": tuple(SQUARES)}  # of a test photograph
ALL_VIEWS = {**VIEWS, "mirror": mirror, **SQUARES}
RANDOM = ("flip", "jitter", "crop")  # those that need the generator


def parse_test_views(listed: str) -> list[str]:
    """Parse "plain,crops" into the names of a test photograph's views, as an argparse type; each is named once."""
    parts = [part.strip() for part in listed.split(",")]
    for part in parts:
        if part not in TEST_VIEWS or parts.count(part) > 1:
            raise argparse.ArgumentTypeError(
                f"{listed!r}: expected some of {', '.join(TEST_VIEWS)}, each once, such as plain,crops"
            )
    return [view for part in parts for view in TEST_VIEWS[part]]


def parse_views(listed: str) -> list[str]:
    """Parse "plain,crop:2" into ["plain", "crop", "crop"], as an argparse type.

    Plain comes first, once; there are at most MAX_VIEWS.
    """
    views: list[str] = []
    for part in map(str.strip, listed.split(",")):
        form = re.fullmatch("([a-z]+)(?::([1-9][0-9]?))?", part)
        if not form or form[1] not in VIEWS:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no view; expected {', '.join(VIEWS)}, or crop:7 for seven, {MAX_VIEWS} in all at most"
            )
        views += [form[1]] * int(form[2] or 1)
    if views[0] != "plain" or views.count("plain") > 1:
        raise argparse.ArgumentTypeError(f"{listed!r}: expected plain first, once, such as {DEFAULT_VIEWS}")
    if len(views) > MAX_VIEWS:
        raise argparse.ArgumentTypeError(f"{listed!r}: {len(views)} views; expected {MAX_VIEWS} in all at most")
    return views


def view_rng(seed: int, name: str, number: int) -> np.random.Generator:
    """Return the random generator of one view of one photograph; it depends on nothing else that is computed."""
    text = f"{seed}\0{number}\0{name}".encode("utf-8", "surrogatepass")  # a file's name need not be UTF-8
    digest = hashlib.sha256(text).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _enhanced(image: Image.Image, rng: np.random.Generator, strength: float, *enhancers) -> Image.Image:
    for enhancer in enhancers:
        image = enhancer(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box (left, top, right, bottom) as in Szegedy et al., arXiv:1409.4842, section 6."""
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*CROP_AREA)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * CROP_RATIO[1]))), min(height, max(1, round(width / CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
