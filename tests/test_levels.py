"""Greyscale photographs of more than 8 bits: their levels, their keys in the store, and the remark about them."""

import io
import logging
import os
import warnings

import numpy as np
import PIL
import pytest
from conftest import GOLDEN
from PIL import Image
from test_photographs import SIDE, VIEWS, fake_encoder, read

from fewshot import data
from fewshot.encoder import FEATURES_VERSION
from fewshot.store import make_key
from jclip import levels, opening
from jclip.preprocess import crop, pixels

RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def picture(mode: str, values: np.ndarray) -> Image.Image:
    if mode.startswith("I;16"):
        stored = values.astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, values.shape[::-1], stored.tobytes())
    return Image.fromarray(values.astype({"I": np.int32, "F": np.float32}[mode]))


@pytest.mark.parametrize(
    "mode, low, high, black, white",
    [
        *[(mode, 0, 65535, 0, 65535) for mode in ("I;16", "I;16L", "I;16B", "I;16N", "I")],
        ("I;16", 1000, 30000, 0, 65535),  # as dark as its copy of 8 bits
        ("I;16", 0, 16383, 0, 16383),
        ("I;16", 0, 4095, 0, 4095),
        ("I;16B", 200, 1500, 200, 1500),  # 12 bits: by their range
        ("I;16", 20, 200, 0, 255),  # 8 bits in 16
        ("I", -1024, 3071, -1024, 3071),
        ("I", 0, 2**31 - 1, 0, 2**31 - 1),
        ("F", 0, 1, 0, 1),
        ("F", -1e-3, 1e-3, -1e-3, 1e-3),
        ("F", -3e38, 3e38, -3e38, 3e38),
    ],
)
def test_grey_levels_are_scaled_to_eight_bits(mode, low, high, black, white):
    values = low + RAMP * (float(high) - low)
    values = np.floor(values) if mode != "F" else values.astype(np.float32).astype(float)
    expected = (values - black) / (float(white) - black) * 255
    got = np.asarray(levels.eight_bits(picture(mode, values)))
    assert got.dtype == np.uint8 and np.abs(got - expected).max() <= 0.51
    np.testing.assert_array_equal(crop(picture(mode, values), SIDE), np.repeat(got[..., None], 3, axis=2))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000", "PPM"])
def test_a_photograph_of_16_bits_looks_like_its_copy_of_8(tmp_path, form):
    """Level x of 8 bits is 257 x of 16; of both, all views are the same."""
    copy = np.random.default_rng(0).integers(0, 256, (40, 60))
    deep = (copy * 257).astype(np.int32 if form == "PPM" else np.uint16)
    for folder, image, written in (("8", copy.astype(np.uint8), "PNG"), ("16", deep, form)):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "a.png", written)
    for number in range(len(VIEWS)):
        np.testing.assert_array_equal(read(tmp_path / "16/a.png", number), read(tmp_path / "8/a.png", number))


def test_what_is_not_a_number_costs_no_other_level():
    values = RAMP.astype(np.float32) * 5 - 2
    values[0, :4] = np.nan, np.inf, -np.inf, values[0, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = np.asarray(levels.eight_bits(Image.fromarray(values)))
    assert got[0, :3].tolist() == [0, 255, 0] and got[0, 3] <= 1 and got[-1, -1] == 255
    assert len(np.unique(got)) == 256


@pytest.mark.parametrize("value", [0.0, 7.5, np.nan, np.inf, -np.inf])
def test_a_picture_of_one_value_is_of_one_level(value):
    got = np.asarray(levels.eight_bits(Image.fromarray(np.full((3, 4), value, np.float32))))
    assert got.shape == (3, 4) and len(np.unique(got)) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_pictures_are_left_alone(mode):
    image = Image.new("RGB" if mode in ("LAB", "HSV") else mode, (3, 2))
    assert levels.eight_bits(image) is image


def test_openais_code_makes_16_bits_white_and_this_does_not():
    golden = np.load(GOLDEN / "preprocess.npz")
    assert golden["modes"][12] == "I;16" and golden["pixels_12"].std(axis=(1, 2)).max() < 1e-6
    assert pixels(Image.open(io.BytesIO(golden["file_12"].tobytes())), 64).std() > 0.5


def test_large_pictures_are_scaled_in_strips():
    values = np.random.default_rng(0).integers(0, 65536, (3000, 1000)).astype(np.uint16)
    got = np.asarray(levels.eight_bits(Image.fromarray(values)))
    np.testing.assert_array_equal(got, np.rint(values / 257))


# ---- rows in the store ----


def test_rows_of_an_older_version_are_not_taken_for_those_of_16_bits(tmp_path, caplog):
    """Their keys have a version of their own; those of all other photographs stay what they were."""
    deep = {"a.png": ("PNG", np.uint16), "b.tif": ("TIFF", np.uint16), "c.tif": ("TIFF", np.float32)}
    deep |= {"d.jp2": ("JPEG2000", np.uint16), "e": ("PNG", np.uint16)}
    for name, (form, dtype) in deep.items():
        Image.fromarray((RAMP * 9000).astype(dtype)).save(tmp_path / name, form)
    for name, form in {"f.png": "PNG", "g.tif": "TIFF", "h.jpg": "JPEG", "i.png": "JPEG"}.items():
        Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / name, form)
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    asked = []

    class Recorder:
        def missing(self, keys):
            asked.extend(keys)
            return []

        def get(self, keys):
            return np.ones((len(keys), 4), np.float32)

    encoder = fake_encoder(store=Recorder())
    with caplog.at_level(logging.INFO, "fewshot"):
        for _ in range(2):
            encoder.encode_photos([data.Photo(tmp_path, name, 0) for name in names])
    changed = []
    for name, key in zip(names, asked):
        status = os.stat(tmp_path / name)
        stamp = [status.st_size, status.st_mtime_ns]
        inputs = "photo", 32, PIL.__version__, "plain", None, "train", name, stamp
        if key != make_key("abc", FEATURES_VERSION, "cpu", *inputs):
            changed.append(name)
    assert changed == sorted(deep)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'a.png'}: more than 8 bits of grey; they are scaled to 8, as those of every such photograph"
    ]


def test_a_photograph_named_like_a_jpeg_is_not_opened_for_its_key(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr("builtins.open", None)
    assert not opening.is_deep(tmp_path / "a.jpg")
