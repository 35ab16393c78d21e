"""The contact sheet: colours, fonts, and photographs and names of any size."""

import numpy as np
import pytest
from PIL import Image

from report import sheet


@pytest.fixture
def photos(tmp_path):
    for i, size in enumerate([(300, 200), (20, 400), (1, 1), (500, 30)]):
        Image.new("RGB", size, (0, 0, 255)).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(4)]


def has_colour(picture, colour) -> bool:
    return bool((np.asarray(picture) == colour).all(axis=-1).any())


def test_right_and_wrong_are_marked(photos):
    guesses = [("bear", 0.7), ("bee", 0.2)]
    right = sheet.contact_sheet([sheet.SheetPhoto(photos[0], guesses, "bear")])
    wrong = sheet.contact_sheet([sheet.SheetPhoto(photos[0], guesses, "bee")])
    unknown = sheet.contact_sheet([sheet.SheetPhoto(photos[0], guesses, None)])
    assert [[has_colour(picture, colour) for colour in (sheet.RIGHT, sheet.WRONG)] for picture in (right, unknown)] == [
        [True, False],
        [False, False],
    ]
    assert has_colour(wrong, sheet.WRONG)
    assert unknown.height < right.height  # an unlabelled photograph has no line for its class


def test_the_font_has_the_letters_of_the_true_class_too(photos, monkeypatch):
    requested, font = [], sheet._font
    monkeypatch.setattr(sheet, "_font", lambda letters: requested.append(letters) or font(letters))
    sheet.contact_sheet([sheet.SheetPhoto(photos[0], [("bear", 1.0)], "汉")])
    assert "汉" in requested[0] and "b" in requested[0]


def test_any_shape_and_any_name_fits(photos):
    shown = [
        sheet.SheetPhoto(photo, [(name, 1.0), ("", 0.0)], None)
        for photo in photos
        for name in ("a" * 200, "汉字 " * 40)
    ]
    picture = sheet.contact_sheet(shown)
    assert picture.width == 5 * (sheet.PHOTO[0] + 2 * sheet.MARGIN)
    edge = np.asarray(picture)[:, sheet.PHOTO[0] + sheet.MARGIN + 5 : sheet.PHOTO[0] + 2 * sheet.MARGIN]
    assert (edge == sheet.GROUND).all()  # a long name is cut before it leaves its cell
