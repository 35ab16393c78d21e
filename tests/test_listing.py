"""Which files of a folder are photographs: by suffix, by content, and what is said about the rest."""

import io
import os
import time
import warnings

import pytest
from PIL import Image
from test_folders import make

from fewshot import data, listing
from fewshot.errors import TaskError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
# a package of this name that reads such a file as the PNG behind its header
PILLOW_HEIF = """
import io
from PIL import Image

__version__ = "0.test"


def register_heif_opener():
    def factory(file, name):
        file.seek(24)
        return Image.open(io.BytesIO(file.read()))

    Image.register_open("HEIF", factory, lambda prefix: prefix[4:12] == b"ftypheic")
"""


def content(form, size=(40, 48)):
    file = io.BytesIO()
    Image.new("RGB", size, (200, 40, 40)).save(file, form)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    make(tmp_path, "train/Red/1.jpg", "test/1.jpg")
    return tmp_path


def names(folder):
    return [photo.name for photo in data.read_task(folder).test]


@pytest.mark.parametrize(
    "name",
    [
        *("a.JPG", "a.jpeg", "a.jpe", "a.JFIF", "a.mpo", "a.png", "a.apng", "a.bmp", "a.dib", "a.webp", "a.gif"),
        *("a.tif", "a.TIFF", "a.ppm", "a.pgm", "a.pbm", "a.pnm", "a.tga", "a.qoi"),
    ],
)
def test_files_with_suffixes_of_photographs_are_listed_unopened(folder, monkeypatch, name):
    make(folder, f"test/{name}")
    monkeypatch.setattr(Image, "open", None)
    assert sorted(names(folder)) == sorted(["1.jpg", name])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "PCX", "SGI", "DDS"])
@pytest.mark.parametrize("name", ["photo", "photo.", "IMG_1.xyz", "photo.jpg.1", "photo.jpg_large", "2024.05"])
def test_where_the_suffix_says_nothing_the_content_decides(folder, caplog, form, name):
    (folder / "test" / name).write_bytes(content(form))
    assert sorted(names(folder)) == sorted(["1.jpg", name]) and not caplog.records


@pytest.mark.parametrize("form, suffix", [("AVIF", ".avif"), ("JPEG2000", ".jp2"), ("JPEG2000", ".j2k")])
def test_formats_of_optional_libraries_are_read_where_pillow_has_them(folder, form, suffix):
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (folder / f"test/2{suffix}").write_bytes(content(form))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow has no {form}")
    assert names(folder) == ["1.jpg", f"2{suffix}"] and suffix in listing.known_suffixes()


@pytest.mark.parametrize(
    "name, inside",
    [
        ("labels.txt", b"0 0.5 0.5 0.1 0.1\n" * 9),
        ("P5.txt", b"P5 is a class\n"),
        ("BM", b"BMW X5 and others, a list of cars"),
        ("empty", b""),
        ("a.json", b"{}"),
        ("a.svg", b"<svg></svg>"),
        ("a.ico", content("ICO")),
        ("a.eps", content("EPS")),
        ("a.mp4", b"\0\0\0\x18ftypisom" + b"\0" * 40),
        ("a.jxl", b"\xff\x0a" + b"\0" * 40),
    ],
)
def test_the_rest_is_counted_by_suffix(folder, caplog, name, inside):
    (folder / "test" / name).write_bytes(inside)
    (folder / "train/Red" / name).write_bytes(inside)
    assert names(folder) == ["1.jpg"]
    suffix = os.path.splitext(name)[1] or "without a suffix"
    assert [record.message for record in caplog.records] == [
        f"{folder / part}: 1 files cannot be read as photographs and are left out: 1 {suffix}"
        for part in ("train", "test")
    ]


def test_suffixes_are_counted_the_commonest_first(folder, caplog):
    make(folder, *[f"test/{name}" for name in ("a.xml", "b.XML", "c.xml", "d.txt", "e.txt", "f", "g.1", "h.2", "i.3")])
    assert names(folder) == ["1.jpg"]
    assert caplog.records[0].message.endswith("left out: 3 .xml, 2 .txt, 1 without a suffix, 1 .1, 1 .2, …")


def test_pipes_and_dangling_links_are_not_opened(folder, caplog):
    os.mkfifo(folder / "test/pipe")
    (folder / "test/link").symlink_to("nowhere")
    (folder / "test/circle").symlink_to("circle")
    assert names(folder) == ["1.jpg"] and "3 without a suffix" in caplog.text


def test_a_folder_without_photographs_says_what_it_holds(tmp_path):
    make(tmp_path, "a.txt", "b.txt", "c")
    with pytest.raises(TaskError, match="no photographs in it that can be read, but 2 .txt, 1 without a suffix"):
        data.photographs(tmp_path)


def test_heic_is_named_with_its_remedy(tmp_path, run, tiny_weights):
    """The scripts run in processes of their own, since a process looks only once for the package."""
    empty = {"PYTHONPATH": str(make(tmp_path / "none", "pillow_heif/"))}  # hides one that is installed
    (tmp_path / "none/pillow_heif/__init__.py").write_text("raise ImportError")
    make(tmp_path, "photos/")
    (tmp_path / "photos/1.png").write_bytes(content("PNG"))
    for name in ("2.heic", "3.HEIF", "4"):
        (tmp_path / "photos" / name).write_bytes(HEIC)
    options = "photos", "--classes", "cat, dog", "--weights", tiny_weights
    done = run("predict.py", *options, cwd=tmp_path, env=empty)
    assert [line for line in done.stdout.splitlines() if line.startswith("photos")] == ["photos/1.png"]
    remark = "HEIC is read where pillow-heif is installed: pip install pillow-heif"
    assert f"left out: 1 .heic, 1 .heif, 1 without a suffix; {remark}" in done.stderr
    done = run("predict.py", "photos/2.heic", *options[1:], cwd=tmp_path, env=empty, check=False)
    assert done.returncode == 1 and f"cannot be read as a photograph ({remark})" in done.stderr


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path, run, tiny_weights):
    make(tmp_path, "packages/pillow_heif/", "photos/")
    (tmp_path / "packages/pillow_heif/__init__.py").write_text(PILLOW_HEIF)
    for i in range(70):  # so many that other processes read them
        (tmp_path / f"photos/{i}.heic").write_bytes(HEIC + content("PNG"))
    (tmp_path / "photos/x").write_bytes(HEIC + content("PNG"))
    (tmp_path / "photos/broken.heic").write_bytes(HEIC)
    done = run(
        *("predict.py", "photos", "--classes", "cat, dog", "--weights", tiny_weights),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "packages")},
        check=False,
    )
    assert len([line for line in done.stdout.splitlines() if line.startswith("photos/")]) == 71
    assert done.returncode == 1 and "photos/broken.heic: cannot be read as a photograph" in done.stderr
    assert "pip install" not in done.stderr and "1 of 72 left out" in done.stderr


def test_no_format_is_listed_that_runs_a_program_or_cannot_be_decoded():
    """EPS would start Ghostscript; of the others Pillow reads the header only."""
    assert not {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"} & set(listing.FORMATS)


def test_many_files_beside_the_photographs_are_looked_at_in_seconds(folder):
    for i in range(3000):
        (folder / f"train/Red/{i}.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    started = time.perf_counter()
    assert names(folder) == ["1.jpg"] and time.perf_counter() - started < 10
