"""The contact sheet: colours, fonts, and photographs and names of any size."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from fewshot import cli
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


def draw_names(photos, *names):
    return sheet.contact_sheet([sheet.SheetPhoto(photo, [(name, 1.0)], None) for photo, name in zip(photos, names)])


def test_letters_that_no_font_has_are_one_remark(photos, monkeypatch, caplog):
    monkeypatch.setattr(sheet, "FONTS", ("no such font.ttf",))  # only Pillow's own is left
    draw_names(photos, "猫", "狗 dog", "ネコ", "café 猫")
    cjk = [message for message in caplog.messages if "fonts-noto-cjk" in message]
    assert len(caplog.messages) == 1 and (cjk or "é" in caplog.text)  # newer Pillow's font has no é
    assert all(letter in caplog.text for letter in "猫狗ネコ") and "dog" not in caplog.text
    caplog.clear()
    draw_names(photos, "猫", "狗")
    assert (
        len(caplog.messages) == 1 and "(猫狗); install" in caplog.text and "apt install fonts-noto-cjk" in caplog.text
    )
    caplog.clear()
    draw_names(photos, "แมว", "猫")
    assert len(caplog.messages) == 1 and "apt install fonts-unifont" in caplog.text


def test_letters_that_a_font_has_are_no_remark(photos, monkeypatch, caplog):
    monkeypatch.setattr(sheet, "FONTS", ())
    draw_names(photos, "bear", "bee; x", "“dog”", "a…")  # with signs of Pillow's own font
    assert caplog.messages == []


def test_the_font_is_chosen_by_its_letters(photos, monkeypatch, caplog):
    """A font that is earlier in the list, but lacks the letters, is passed over."""
    latin, chinese = (ImageFont.load_default(sheet.SIZE) for _ in range(2))
    fonts = {"latin.ttf": latin, "chinese.ttf": chinese}
    monkeypatch.setattr(sheet, "FONTS", tuple(fonts))
    monkeypatch.setattr(sheet.ImageFont, "truetype", lambda name, size: fonts[name])
    monkeypatch.setattr(sheet, "missing_letters", lambda font, text: ["猫"] if font is not chinese else [])
    assert sheet._font("猫") is chinese and caplog.messages == []


def test_the_commands_show_the_remark(capsys):
    cli.command(lambda argv: sheet.logger.warning("a remark"))()
    assert capsys.readouterr().err == "a remark\n"


def test_chinese_with_a_font_that_has_it(photos, caplog):
    try:
        font = ImageFont.truetype("NotoSansCJK-Regular.ttc", sheet.SIZE)
    except OSError:
        pytest.skip("needs Noto Sans CJK (Debian: fonts-noto-cjk)")
    assert sheet.missing_letters(font, "猫、狗 ネコ 고양이 dog é\u3000") == []
    assert sheet.missing_letters(font, "猫แ") == ["แ"]
    draw_names(photos, "猫", "狗")
    assert caplog.messages == []


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
