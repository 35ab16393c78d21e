"""Draw photographs of the demo's classes at random position, size, angle, light and background.

There are three groups of classes: signs (a shape with a pattern: "striped star"), flocks (several small shapes: "three
hearts") and things ("anchor"); CLIP's training also has glyphs, which are random shapes. The same seed draws the same
pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

COLOURS = {
    "red": (205, 45, 45),
    "orange": (235, 140, 35),
    "yellow": (235, 215, 60),
    "green": (55, 160, 70),
    "blue": (50, 85, 205),
    "purple": (140, 65, 180),
    "black": (35, 35, 40),
    "white": (240, 240, 240),
}
PATTERNS = ("solid", "striped", "dotted", "checkered", "hollow")
COUNTS = {"two": 2, "three": 3, "five": 5}
SIZE = (96, 72)  # of a photograph, in pixels
DETAIL = 2  # drawn this many times larger, then reduced: smooth edges


def _ngon(n: int, radius: float = 1.0, turn: float = 0.0, centre=(0.0, 0.0)) -> list:
    return [
        (
            centre[0] + radius * math.sin(turn + 2 * math.pi * i / n),
            centre[1] - radius * math.cos(turn + 2 * math.pi * i / n),
        )
        for i in range(n)
    ]


def _star() -> list:
    return [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate([1, 0.42] * 5)]


def _heart() -> list:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17)
        for t in turns
    ]


def _drop() -> list:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return [(0.75 * math.sin(t) * math.sin(t / 2) ** 1.5 * 1.3, -math.cos(t)) for t in turns]


def _box(left, top, right, bottom) -> list:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


# name -> polygons in a square of -1 to 1 (y points down), painted one over the other; a False one is cut out
SHAPES = {
    "circle": [(_ngon(40, 0.95), True)],
    "square": [(_ngon(4, 1.15, math.pi / 4), True)],
    "triangle": [(_ngon(3, 1.1), True)],
    "star": [(_star(), True)],
    "heart": [(_heart(), True)],
    "cross": [(_box(-0.33, -1, 0.33, 1), True), (_box(-1, -0.33, 1, 0.33), True)],
    "ring": [(_ngon(40), True), (_ngon(40, 0.55), False)],
    "moon": [(_ngon(40), True), (_ngon(40, 0.85, centre=(0.5, -0.15)), False)],
    "arrow": [([(0, -1), (0.8, -0.1), (0.3, -0.1), (0.3, 1), (-0.3, 1), (-0.3, -0.1), (-0.8, -0.1)], True)],
    "diamond": [([(0, -1.1), (0.62, 0), (0, 1.1), (-0.62, 0)], True)],
    "hexagon": [(_ngon(6), True)],
    "drop": [(_drop(), True)],
}
THINGS = {
    "anchor": [
        (_box(-0.12, -0.7, 0.12, 0.8), True),
        (_box(-0.5, -0.45, 0.5, -0.22), True),
        (_ngon(20, 0.28, centre=(0, -0.8)), True),
        (_ngon(20, 0.13, centre=(0, -0.8)), False),
        (
            [
                (-0.95, 0.1),
                (-0.6, 0.25),
                (-0.35, 0.6),
                (0, 0.7),
                (0.35, 0.6),
                (0.6, 0.25),
                (0.95, 0.1),
                (0.75, 0.7),
                (0, 1.05),
                (-0.75, 0.7),
            ],
            True,
        ),
    ],
    "fish": [
        (
            [
                (-0.95, 0),
                (-0.5, -0.42),
                (0.1, -0.45),
                (0.5, -0.1),
                (1, -0.5),
                (1, 0.5),
                (0.5, 0.1),
                (0.1, 0.45),
                (-0.5, 0.42),
            ],
            True,
        ),
        (_ngon(12, 0.1, centre=(-0.55, -0.1)), False),
    ],
    "house": [
        ([(0, -1), (1, -0.2), (0.75, -0.2), (0.75, 0.9), (-0.75, 0.9), (-0.75, -0.2), (-1, -0.2)], True),
        (_box(-0.2, 0.3, 0.2, 0.9), False),
        (_box(0.35, -0.05, 0.6, 0.2), False),
    ],
    "key": [
        (_ngon(24, 0.45, centre=(0, -0.6)), True),
        (_ngon(24, 0.2, centre=(0, -0.6)), False),
        (_box(-0.12, -0.2, 0.12, 1), True),
        (_box(0.1, 0.45, 0.5, 0.62), True),
        (_box(0.1, 0.8, 0.42, 0.97), True),
    ],
    "lightning": [([(0.25, -1.05), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1.05), (0.6, -0.25), (0.05, -0.25)], True)],
    "mushroom": [
        ([(-1, 0.05), (-0.85, -0.5), (-0.4, -0.9), (0.4, -0.9), (0.85, -0.5), (1, 0.05)], True),
        ([(-0.28, 0.05), (0.28, 0.05), (0.38, 0.95), (-0.38, 0.95)], True),
        (_ngon(12, 0.15, centre=(-0.3, -0.4)), False),
        (_ngon(12, 0.15, centre=(0.35, -0.35)), False),
    ],
    "sailboat": [
        ([(-0.95, 0.45), (0.95, 0.45), (0.55, 0.95), (-0.55, 0.95)], True),
        ([(-0.05, -1), (-0.05, 0.3), (-0.8, 0.3)], True),
        ([(0.1, -0.75), (0.1, 0.3), (0.75, 0.3)], True),
    ],
    "tree": [
        (_box(-0.15, 0.4, 0.15, 1), True),
        ([(0, -1.05), (0.55, -0.35), (-0.55, -0.35)], True),
        ([(0, -0.65), (0.75, 0.1), (-0.75, 0.1)], True),
        ([(0, -0.2), (0.9, 0.55), (-0.9, 0.55)], True),
    ],
}
# Classes of the few-shot task, which CLIP's training leaves out. Training has each shape, pattern and number in other
# combinations, but neither the shapes nor the names of THINGS.
NEW_SIGNS = (
    "striped star",
    "dotted heart",
    "checkered circle",
    "hollow arrow",
    "solid moon",
    "striped hexagon",
    "dotted triangle",
    "checkered cross",
    "hollow drop",
    "solid ring",
    "striped diamond",
    "dotted square",
    "checkered drop",
    "hollow triangle",
)
NEW_FLOCKS = (
    "two stars",
    "three hearts",
    "five circles",
    "two arrows",
    "three moons",
    "five crosses",
    "two squares",
    "three rings",
)


GLYPHS = 80  # random shapes for CLIP's training alone, so that it learns to tell new shapes apart


class Thing(NamedTuple):
    """What to draw: the polygons of a shape, how many copies of it, and their pattern."""

    shape: list
    count: int
    pattern: str


def signs() -> dict[str, Thing]:
    """Return all signs by name."""
    return {f"{pattern} {shape}": Thing(SHAPES[shape], 1, pattern) for shape in SHAPES for pattern in PATTERNS}


def flocks() -> dict[str, Thing]:
    """Return all flocks by name."""
    return {
        f"{word} {shape}{'es' if shape.endswith('s') else 's'}": Thing(SHAPES[shape], count, "solid")
        for shape in SHAPES
        for word, count in COUNTS.items()
    }


def things() -> dict[str, Thing]:
    """Return all things by name."""
    return {name: Thing(shape, 1, "solid") for name, shape in THINGS.items()}


def glyphs() -> dict[str, Thing]:
    """Make random shapes of two to four parts, some of them cut out, under made-up names such as "bim"."""
    rng = np.random.default_rng(0)
    names = [first + vowel + last for first in "bdfgklmnprtvz" for vowel in "aeiou" for last in "bdgkmnpx"]
    made = {}
    for name in rng.choice(names, GLYPHS, replace=False):
        shape = [(_part(rng, rng.uniform(0.6, 1.0), 0.15), True)]
        shape += [(_part(rng, rng.uniform(0.3, 0.7), 0.6), bool(rng.random() < 0.7)) for _ in range(rng.integers(1, 4))]
        made[str(name)] = Thing(shape, 1, "solid")
    return made


def _part(rng, radius: float, offset: float) -> list:
    """Draw a polygon or an ellipse, stretched, turned, and up to `offset` from the middle in x and y."""
    corners, turn, stretch = int(rng.choice([3, 4, 4, 5, 6, 24])), rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1)
    sine, cosine, (x0, y0) = math.sin(turn), math.cos(turn), rng.uniform(-offset, offset, 2)
    return [
        (x0 + radius * (x * cosine - stretch * y * sine), y0 + radius * (x * sine + stretch * y * cosine))
        for x, y in _ngon(corners)
    ]


def photograph(thing: Thing, colour: str, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw a photograph of the thing at a random position, size and angle, on a random background, with noise."""
    size = np.array([width, height]) * DETAIL
    image = _background(rng, colour, *size)
    for centre, radius in _circles(rng, thing.count, *size):
        mask = _mask(thing.shape, centre, radius, rng.uniform(-0.45, 0.45), size)
        if thing.pattern == "hollow":
            inner = mask.filter(ImageFilter.MinFilter(2 * int(radius * 0.09) + 3))
            mask = ImageChops.subtract(mask, inner)
        image.paste(_surface(rng, thing.pattern, colour, radius, *size), mask=mask)
    image = image.resize((width, height), Image.BOX)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7)))
    return _add_light_and_noise(image, rng)


def _circles(rng, count: int, width: int, height: int) -> list:
    """Draw (centre, radius) in pixels inside the middle square, which CLIP sees: one large, or several apart."""
    short = min(width, height)

    def centre(radius: float) -> tuple[float, float]:
        return tuple(side / 2 + rng.uniform(-1, 1) * (short / 2 - radius) for side in (width, height))

    if count == 1:
        radius = short * rng.uniform(0.27, 0.42)
        return [(centre(radius), radius)]
    radius = short * rng.uniform(0.115, 0.15)
    circles: list = []
    while len(circles) < count:
        circles = []
        for _ in range(60):
            position = centre(1.1 * radius)
            if len(circles) < count and all(math.dist(position, other) > 2.3 * radius for other, _ in circles):
                circles.append((position, radius * rng.uniform(0.85, 1.05)))
    return circles


def _mask(shape: list, centre, radius: float, turn: float, size) -> Image.Image:
    """Draw the shape in white on black."""
    mask = Image.new("L", tuple(map(int, size)))
    draw = ImageDraw.Draw(mask)
    sine, cosine = math.sin(turn), math.cos(turn)
    for points, painted in shape:
        draw.polygon(
            [
                (centre[0] + radius * (x * cosine - y * sine), centre[1] + radius * (x * sine + y * cosine))
                for x, y in points
            ],
            fill=255 * painted,
        )
    return mask


def _surface(rng, pattern: str, colour: str, radius: float, width: int, height: int) -> Image.Image:
    """Draw a surface in the thing's colour and pattern, as large as the photograph."""
    first = np.array(COLOURS[colour]) + rng.normal(0, 10, 3)
    second = np.array((250, 250, 245) if np.mean(first) < 140 else (40, 40, 50)) + rng.normal(0, 8, 3)
    y, x = np.mgrid[:height, :width]
    turn, phase = rng.uniform(0, math.pi), rng.uniform(0, 10, 2)
    u, v = x * math.cos(turn) + y * math.sin(turn) + phase[0], y * math.cos(turn) - x * math.sin(turn) + phase[1]
    step = radius * rng.uniform(0.42, 0.55)
    is_second = {
        "striped": u % step < step / 2,
        "checkered": (u // (step * 0.8) + v // (step * 0.8)) % 2 < 1,
        "dotted": (u % step - step / 2) ** 2 + (v % step - step / 2) ** 2 < (0.3 * step) ** 2,
    }.get(pattern, np.zeros((height, width), bool))
    return Image.fromarray(np.where(is_second[..., None], second, first).clip(0, 255).astype(np.uint8))


def _background(rng, colour: str, width: int, height: int) -> Image.Image:
    """Draw two colours that fade into each other, both unlike the thing's, with a few lines on them."""
    unlike = [c for c in COLOURS.values() if np.abs(np.array(c) - COLOURS[colour]).sum() > 200]
    first, second = (0.55 * np.array(unlike[rng.integers(len(unlike))]) + 0.45 * rng.uniform(60, 200) for _ in range(2))
    y, x = np.mgrid[:height, :width]
    turn = rng.uniform(0, 2 * math.pi)
    fade = ((x / width - 0.5) * math.cos(turn) + (y / height - 0.5) * math.sin(turn) + 0.5).clip(0, 1)[..., None]
    image = Image.fromarray((first * fade + second * (1 - fade)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        ends = [tuple(rng.uniform(0, 1, 2) * (width, height)) for _ in range(2)]
        draw.line(
            ends,
            fill=tuple(int(c) for c in (0.7 * first + 0.3 * rng.uniform(0, 255, 3))),
            width=int(rng.integers(2, 5)),
        )
    return image


def _add_light_and_noise(image: Image.Image, rng) -> Image.Image:
    """Change brightness and contrast, add light from one side, and noise."""
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width]
    turn = rng.uniform(0, 2 * math.pi)
    light = 1 + rng.uniform(0, 0.35) * ((x / width - 0.5) * math.cos(turn) + (y / height - 0.5) * math.sin(turn))
    pixels = (pixels - 128) * rng.uniform(0.75, 1.15) + 128 + rng.uniform(-25, 25)
    return Image.fromarray(
        (pixels * light[..., None] + rng.normal(0, rng.uniform(2, 12), pixels.shape)).clip(0, 255).astype(np.uint8)
    )
