"""A contact sheet: photographs with their likeliest classes, and which first guesses are right."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

COLUMNS = 5
PHOTO = (228, 171)  # the box that a photograph is fitted into, in pixels
MARGIN, LINE, SIZE = 14, 19, 13  # around a cell, between its lines, of its letters
RIGHT, WRONG, PLAIN = (26, 127, 62), (190, 48, 38), (70, 78, 92)
INK, PALE, GROUND, BAR = (33, 37, 45), (120, 126, 138), (250, 250, 248), (214, 222, 234)
# Pillow's own font has Latin letters only; where names have others, the first of these that is installed
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc", "DejaVuSans.ttf")


class Shown(NamedTuple):
    """One photograph on the sheet."""

    path: Path
    guesses: Sequence[tuple[str, float]]  # class and probability, best first
    truth: str | None  # the class, where it is known


def contact_sheet(shown: Sequence[Shown]) -> Image.Image:
    """The sheet, RGB: five photographs a row, each over its classes with bars as long as their probabilities.

    A frame and a mark say whether the first guess is right; where it is wrong, a line says what the photograph shows.
    Raises OSError where a photograph cannot be read.
    """
    lines = max(len(one.guesses) for one in shown)
    marked = any(one.truth is not None for one in shown)
    width, height = PHOTO[0] + 2 * MARGIN, PHOTO[1] + 2 * MARGIN + LINE * (lines + marked) + 8
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), GROUND)
    font = _font("".join([one.truth or "" for one in shown] + [name for one in shown for name, _ in one.guesses]))
    for i, one in enumerate(shown):
        sheet.paste(_cell(one, lines, marked, (width, height), font), (i % columns * width, i // columns * height))
    return sheet


def _cell(one: Shown, lines: int, marked: bool, size: tuple[int, int], font) -> Image.Image:
    cell = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(cell)
    colour = PLAIN if one.truth is None else RIGHT if one.truth == one.guesses[0][0] else WRONG
    left, right, top = MARGIN, MARGIN + PHOTO[0], MARGIN
    draw.rectangle((left - 4, top - 4, right + 3, top + PHOTO[1] + 3), outline=colour, width=3)
    photo = _fitted(one.path)
    cell.paste(photo, (left + (PHOTO[0] - photo.width) // 2, top + (PHOTO[1] - photo.height) // 2))
    top += PHOTO[1] + 8
    if marked:
        if one.truth is not None:
            _mark(draw, left, top, colour)
            said = "right" if colour == RIGHT else f"wrong: it is {one.truth}"
            draw.text((left + 17, top), _cut(draw, said, right - left - 17, font), fill=colour, font=font)
        top += LINE
    for rank, (name, probability) in enumerate(one.guesses):
        share = f"{probability:.0%}"
        draw.rectangle((left, top + 1, left + round((right - left) * probability), top + LINE - 3), fill=BAR)
        room = right - left - 12 - draw.textlength("100%", font=font)
        draw.text(
            (left + 4, top),
            _cut(draw, name, room, font),
            fill=RIGHT if name == one.truth else INK if rank == 0 else PALE,
            font=font,
        )
        draw.text(
            (right - 3 - draw.textlength(share, font=font), top), share, fill=INK if rank == 0 else PALE, font=font
        )
        top += LINE
    return cell


def _mark(draw: ImageDraw.ImageDraw, left: int, top: int, colour) -> None:
    """A tick or a cross, drawn, for not every font has them."""
    box = (left, top + 3, left + 10, top + 13)
    if colour == RIGHT:
        draw.line([(box[0], top + 9), (left + 4, box[3]), (box[2] + 1, box[1])], fill=colour, width=3, joint="curve")
    else:
        draw.line([box[:2], box[2:]], fill=colour, width=3)
        draw.line([(box[0], box[3]), (box[2], box[1])], fill=colour, width=3)


def _fitted(path: Path) -> Image.Image:
    """The photograph as large as the box allows; a small one is enlarged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a photograph is large, or its metadata odd
        with Image.open(path) as image:
            image.draft("RGB", PHOTO)  # a large JPEG need not be decoded in full
            image = image.convert("RGB")
    scale = min(PHOTO[0] / image.width, PHOTO[1] / image.height)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.BICUBIC)


def _cut(draw: ImageDraw.ImageDraw, text: str, room: float, font) -> str:
    """The text, or as much of its beginning as there is room for."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(letters: str):
    if letters.isascii():
        return ImageFont.load_default(SIZE)
    for name in FONTS:
        try:
            return ImageFont.truetype(name, SIZE)
        except OSError:
            continue
    return ImageFont.load_default(SIZE)
