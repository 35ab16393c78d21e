"""Photographs above Pillow's limit: a JPEG is decoded at a reduced size, others are refused with size and limit."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image
from test_photographs import SIDE, VIEWS, encode, random_image, read

from jclip import opening, preprocess
from jclip.errors import Unreadable
from report import sheet

PHONE = 16320, 12240  # 200 megapixels


def large_jpeg(width: int, height: int) -> bytes:
    """Return a JPEG of vertical stripes without ever holding its pixels: rows of 16 are coded once and repeated."""
    stripes = np.zeros((128, width, 3), np.uint8)
    stripes[:, : width // 2] = 200, 120, 40
    stripes[:, :: width // 4 or 1] = 255
    parts = encode(Image.fromarray(stripes), "JPEG", restart_marker_rows=1)
    head, scan = parts[: parts.index(b"\xff\xda") + 14], parts[parts.index(b"\xff\xda") + 14 : -2]
    frame = head.index(b"\xff\xc0") + 5  # of the height
    if b"\xff\xd0" not in scan:
        pytest.skip("this Pillow writes no restart markers")
    row = scan[: scan.index(b"\xff\xd0")]
    rows = b"".join(row + bytes([0xFF, 0xD0 + i % 8]) for i in range(-(-height // 16) - 1)) + row
    return head[:frame] + height.to_bytes(2, "big") + head[frame + 2 :] + rows + b"\xff\xd9"


@pytest.fixture
def small_limits(monkeypatch):
    """Lower the limits to a thousandth, so that small files are large."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS // 1000)
    monkeypatch.setattr(opening, "MAX_BYTES", opening.MAX_BYTES // 1000)


PEAK = """
import re, sys
from pathlib import Path
from fewshot.data import Photo
from fewshot.encoder import PixelReader

def peak():  # in KiB; getrusage would begin with the peak of the process that started this one
    return int(re.search("VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1])

path, before = Path(sys.argv[1]), peak()
for number in range(4):
    print(PixelReader(224, ("plain", "flip", "jitter", "crop"), 1)((Photo(path.parent, path.name, 0), number)).shape)
print((peak() - before) // 1024)
"""


def read_alone(path):
    """Read all views in a process of their own; return their shapes and by how many MiB its peak memory grew."""
    command = [sys.executable, "-c", PEAK, path]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    *shapes, peak = done.stdout.splitlines()
    return shapes, int(peak)


def test_a_phones_200_megapixels_are_read_in_little_memory(tmp_path):
    """Decoded in full they would take 799 MB."""
    (tmp_path / "phone.jpg").write_bytes(large_jpeg(*PHONE))
    shapes, peak = read_alone(tmp_path / "phone.jpg")
    print(f"{peak} MiB")
    assert shapes == ["(224, 224, 3)"] * 4 and peak < 100
    drawn = sheet.contact_sheet([sheet.SheetPhoto(tmp_path / "phone.jpg", [("cat", 0.9)], None)])
    assert (np.abs(np.asarray(drawn) - np.array([200, 120, 40])).max(axis=2) < 10).sum() > 1000  # its left half


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (2000, 128), (128, 2000)])
@pytest.mark.parametrize("kind", ["JPEG", "grey", "CMYK", "progressive", "MPO"])
def test_a_large_jpeg_looks_as_if_it_were_decoded_in_full(tmp_path, small_limits, size, kind):
    image = random_image(12, 9).resize(size, Image.BICUBIC)
    mode, form, options = {
        "JPEG": ("RGB", "JPEG", {}),
        "grey": ("L", "JPEG", {}),
        "CMYK": ("CMYK", "JPEG", {}),
        "progressive": ("L", "JPEG", {"progressive": True}),
        "MPO": ("RGB", "MPO", {"save_all": True, "append_images": [image]}),
    }[kind]
    image = image.convert(mode)
    (tmp_path / "a.jpg").write_bytes(encode(image, form, quality=95, **options))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.jpg")
    with opening.opened(tmp_path / "a.jpg", SIDE) as opened:
        opened.load()
        assert min(opened.size) >= SIDE and opened.width * opened.height < size[0] * size[1]
    for number in range(len(VIEWS)):
        assert read(tmp_path / "a.jpg", number).shape == (SIDE, SIDE, 3)
    difference = read(tmp_path / "a.jpg").astype(int) - preprocess.crop(image, SIDE)
    assert np.abs(difference).mean() < 3


def test_of_a_large_jpeg_the_short_side_stays_as_long_as_the_models_input(tmp_path, small_limits):
    (tmp_path / "a.jpg").write_bytes(encode(random_image(600, 450), "JPEG"))
    sizes = {}
    for side in (16, 56, 57, 112, 113, 225):
        with opening.opened(tmp_path / "a.jpg", side) as image:
            sizes[side] = min(image.size)
    assert sizes == {16: 57, 56: 57, 57: 113, 112: 113, 113: 225, 225: 225}


def test_photographs_below_the_limit_are_decoded_in_full(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(random_image(3000, 2000), "JPEG"))
    with opening.opened(tmp_path / "a.jpg", 16) as image:
        assert image.size == (3000, 2000)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000"])
def test_other_large_photographs_are_refused_with_size_and_limit(tmp_path, small_limits, form):
    (tmp_path / "a.png").write_bytes(encode(random_image(600, 450), form))
    with pytest.raises(
        Unreadable, match="600 x 450 .*only a JPEG may be larger|270000 pixels.* exceeds limit of"
    ) as error:
        read(tmp_path / "a.png")
    assert "save it smaller" in str(error.value)


@pytest.mark.parametrize("options", [{"progressive": True, "subsampling": 0}, "one scan a channel"])
def test_a_jpeg_that_must_be_held_as_a_whole_is_refused_where_it_is_too_large(tmp_path, small_limits, options):
    """Coefficients take 2 bytes for each of 3 channels, whatever size the file is decoded at."""
    content = encode(random_image(600, 450), "JPEG", **(options if isinstance(options, dict) else {"subsampling": 0}))
    if not isinstance(options, dict):  # claim that the first scan holds one channel
        at = content.index(b"\xff\xda") + 2
        content = content[:at] + b"\0\x08\x01" + content[at + 3 : at + 5] + b"\0\x3f\0" + content[at + 12 :]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(Unreadable, match="600 x 450 .* decoding this JPEG takes 2 MB, above 1 MB; save it smaller"):
        read(tmp_path / "a.jpg")


def test_a_large_jpeg_that_is_damaged_says_so(tmp_path, small_limits):
    whole = encode(random_image(600, 450), "JPEG")
    for n in (len(whole) // 2, whole.index(b"\xff\xda"), whole.index(b"\xff\xda") + 3):
        (tmp_path / "a.jpg").write_bytes(whole[:n])
        with pytest.raises(Unreadable):
            read(tmp_path / "a.jpg")


@pytest.mark.slow
def test_the_largest_jpeg_there_can_be_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(large_jpeg(65500, 65500))
    shapes, peak = read_alone(tmp_path / "a.jpg")
    print(f"{peak} MiB")
    assert shapes == ["(224, 224, 3)"] * 4 and peak < 1400  # a view holds up to five copies of 256 MiB
