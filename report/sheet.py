"""A contact sheet: photographs with their likeliest classes, and marks for correct and wrong predictions."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fewshot.artifacts import Adapter
from fewshot.errors import TaskError
from fewshot.prompts import display_names
from jclip import levels, opening
from jclip.errors import Unreadable
from jclip.files import atomic_write

from .metrics import top_classes

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # suffix -> Pillow format
MAX_PHOTOS = 30
COLUMNS = 5
PHOTO = (228, 171)  # width and height of the box that a photograph is fitted into, in pixels
MARGIN = 14  # pixels around a cell
LINE = 19  # pixels from one line of text to the next
SIZE = 13  # font size
RIGHT, WRONG, PLAIN = (26, 127, 62), (190, 48, 38), (70, 78, 92)
INK, PALE, GROUND, BAR = (33, 37, 45), (120, 126, 138), (250, 250, 248), (214, 222, 234)
# Pillow's own font has few letters beside ASCII. For other names, the first installed font of this list that has all
# their letters is used.
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "DejaVuSans.ttf",
    "unifont.otf",
)
NO_CHARACTER = "\uffff"  # no font has it; it is drawn as every missing letter is
# What a user can install: for Chinese, Japanese and Korean, and for letters of any script.
CJK_FONT = "Noto Sans CJK (Debian, Ubuntu: apt install fonts-noto-cjk)"
ANY_FONT = "GNU Unifont (Debian, Ubuntu: apt install fonts-unifont)"
CJK = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH")  # Unicode names
MAX_SHOWN = 20  # missing letters in a message
logger = logging.getLogger("report")


class SheetPhoto(NamedTuple):
    """A photograph on the sheet, with its predictions."""

    path: Path
    guesses: Sequence[tuple[str, float]]  # (class name, probability), best first
    truth: str | None  # the true class name, if known


def evenly_spaced(n: int) -> list[int]:
    """Return at most MAX_PHOTOS evenly spaced indices below n."""
    return np.linspace(0, n - 1, min(MAX_PHOTOS, n)).astype(int).tolist()


def write(
    path: Path, photos: Sequence[Path], probabilities: np.ndarray, adapter: Adapter, labels: Sequence[int], k: int
) -> None:
    """Write a contact sheet of photographs with their k likeliest classes, atomically.

    Parameters
    ----------
    path : Path
        Its suffix, one of FORMATS, determines the format.
    photos : sequence of Path, length M
    probabilities : array of shape (M, C)
    adapter : Adapter
        Gives the names of the C classes.
    labels : sequence of int, length M
        -1 if the class is unknown.
    k : int

    Raises
    ------
    TaskError
        If a photograph cannot be read.
    """
    names = display_names(adapter)
    shown = [
        SheetPhoto(photo, [(names[i], float(row[i])) for i in best], names[label] if label >= 0 else None)
        for photo, row, best, label in zip(photos, probabilities, top_classes(probabilities, k), labels)
    ]
    picture = contact_sheet(shown)
    with atomic_write(path) as file:
        picture.save(file, FORMATS[path.suffix.lower()])


def contact_sheet(shown: Sequence[SheetPhoto]) -> Image.Image:
    """Return a picture with five photographs per row, each above its likeliest classes and bars of their probabilities.

    The colour of the frame and a mark show whether the first class is correct; if not, a line names the true class.

    Raises
    ------
    TaskError
        If a photograph cannot be read.
    """
    lines = max(len(photo.guesses) for photo in shown)
    marked = any(photo.truth is not None for photo in shown)
    width, height = PHOTO[0] + 2 * MARGIN, PHOTO[1] + 2 * MARGIN + LINE * (lines + marked) + 8
    columns = min(COLUMNS, len(shown))
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), GROUND)
    font = _font(
        "".join([photo.truth or "" for photo in shown] + [name for photo in shown for name, _ in photo.guesses])
    )
    for i, photo in enumerate(shown):
        sheet.paste(_cell(photo, lines, marked, (width, height), font), (i % columns * width, i // columns * height))
    return sheet


def _cell(photo: SheetPhoto, lines: int, marked: bool, size: tuple[int, int], font) -> Image.Image:
    cell = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(cell)
    colour = PLAIN if photo.truth is None else RIGHT if photo.truth == photo.guesses[0][0] else WRONG
    left, right, top = MARGIN, MARGIN + PHOTO[0], MARGIN
    draw.rectangle((left - 4, top - 4, right + 3, top + PHOTO[1] + 3), outline=colour, width=3)
    picture = _read_scaled(photo.path)
    cell.paste(picture, (left + (PHOTO[0] - picture.width) // 2, top + (PHOTO[1] - picture.height) // 2))
    top += PHOTO[1] + 8
    if marked:
        if photo.truth is not None:
            _mark(draw, left, top, colour)
            verdict = "right" if colour == RIGHT else f"wrong: it is {photo.truth}"
            draw.text((left + 17, top), _cut(draw, verdict, right - left - 17, font), fill=colour, font=font)
        top += LINE
    for rank, (name, probability) in enumerate(photo.guesses):
        share = f"{probability:.0%}"
        draw.rectangle((left, top + 1, left + round((right - left) * probability), top + LINE - 3), fill=BAR)
        room = right - left - 12 - draw.textlength("100%", font=font)
        draw.text(
            (left + 4, top),
            _cut(draw, name, room, font),
            fill=RIGHT if name == photo.truth else INK if rank == 0 else PALE,
            font=font,
        )
        draw.text(
            (right - 3 - draw.textlength(share, font=font), top), share, fill=INK if rank == 0 else PALE, font=font
        )
        top += LINE
    return cell


def _mark(draw: ImageDraw.ImageDraw, left: int, top: int, colour) -> None:
    """Draw a tick or a cross as lines, since some fonts lack these characters."""
    box = (left, top + 3, left + 10, top + 13)
    if colour == RIGHT:
        draw.line([(box[0], top + 9), (left + 4, box[3]), (box[2] + 1, box[1])], fill=colour, width=3, joint="curve")
    else:
        draw.line([box[:2], box[2:]], fill=colour, width=3)
        draw.line([(box[0], box[3]), (box[2], box[1])], fill=colour, width=3)


def _read_scaled(path: Path) -> Image.Image:
    """Read a photograph and scale it to fit the box PHOTO."""
    try:
        with opening.opened(path, max(PHOTO)) as image:
            image.draft("RGB", PHOTO)  # decodes a large JPEG at a reduced size
            image = levels.eight_bits(image).convert("RGB")
    except Unreadable as error:
        raise TaskError(
            f"{path}: cannot be read as a photograph ({error}); put it back, or leave out --sheet"
        ) from None
    scale = min(PHOTO[0] / image.width, PHOTO[1] / image.height)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.BICUBIC)


def _cut(draw: ImageDraw.ImageDraw, text: str, room: float, font) -> str:
    """Return the text, shortened with "…" if it is wider than `room` pixels."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "…", font=font) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(letters: str):
    """Return the first font that has all letters; if there is none, the one that lacks the fewest, and log it."""
    if letters.isascii():
        return ImageFont.load_default(SIZE)
    fewest, chosen = None, None
    for font in _installed_fonts():
        missing = missing_letters(font, letters)
        if fewest is None or len(missing) < len(fewest):
            fewest, chosen = missing, font
        if not missing:
            return chosen
    is_cjk = all(unicodedata.name(letter, "").startswith(CJK) for letter in fewest)
    logger.warning(
        "the sheet has boxes for letters of class names that no installed font has (%s); install %s",
        "".join(fewest[:MAX_SHOWN]) + "…" * (len(fewest) > MAX_SHOWN),
        CJK_FONT if is_cjk else ANY_FONT,
    )
    return chosen


def _installed_fonts() -> Iterator:
    for name in FONTS:
        try:
            yield ImageFont.truetype(name, SIZE)
        except OSError:
            continue
    yield ImageFont.load_default(SIZE)


def missing_letters(font, text: str) -> list[str]:
    """Return the letters, digits, signs and symbols of a text that a font draws as it draws a missing one.

    Spaces, marks on other letters and control characters are not looked at.
    """

    def drawn(letter: str) -> tuple:
        mask = font.getmask(letter)
        return mask.size, bytes(mask)

    box = drawn(NO_CHARACTER)
    return [
        letter for letter in dict.fromkeys(text) if unicodedata.category(letter)[0] in "LNPS" and drawn(letter) == box
    ]
