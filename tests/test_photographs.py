"""Damaged, odd, enormous and badly named photographs: none ends a run, and every test photograph has its line."""

import io
import os
import random
import shutil
import struct
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
from conftest import draw
from PIL import Image

import extract_feature
import predict
import train_adapter
from fewshot import artifacts, data
from fewshot.encoder import FEATURES_VERSION, Encoder, PixelReader
from fewshot.rows import softmax
from fewshot.store import Store, make_key
from jclip import download, features, preprocess, weights
from jclip.errors import Unreadable

VIEWS = ("plain", "flip", "jitter", "crop")
SIDE = 32


def random_image(width, height, channels=3, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(
            0, 256, (height, width, channels) if channels > 1 else (height, width), np.uint8
        )
    )


def encode(image, form, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def rotated_jpeg() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    return encode(random_image(60, 40), "JPEG", exif=exif, quality=95)


def transparent_palette_png() -> bytes:
    return encode(random_image(60, 40).quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))


def decompression_bomb() -> bytes:
    """Return a PNG of a few bytes whose header claims 100,000 x 100,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100000, 100000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + head
        + struct.pack(">I", zlib.crc32(head))
        + b"\0\0\0\0IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


JPEG = encode(random_image(60, 40), "JPEG")
GOOD = {
    "a.jpg": JPEG,
    "png named.jpg": encode(random_image(60, 40), "PNG"),
    "cmyk.jpg": encode(random_image(60, 40).convert("CMYK"), "JPEG"),
    "deep.png": encode(Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 60)).astype(np.uint16)), "PNG"),
    "palette.png": transparent_palette_png(),
    "moving.gif": encode(random_image(60, 40), "GIF", save_all=True, append_images=[random_image(60, 40, seed=1)] * 3),
    "one.png": encode(random_image(1, 1), "PNG"),
    "wide.png": encode(random_image(30000, 10), "PNG"),
    "tall.png": encode(random_image(10, 30000), "PNG"),
    "turned.jpg": rotated_jpeg(),
    "grey.jpg": encode(random_image(60, 40, 1), "JPEG"),
    "alpha.png": encode(random_image(60, 40, 4), "PNG"),
    "grey alpha.png": encode(random_image(60, 40, 4).convert("LA"), "PNG"),
    "bits.tif": encode(random_image(60, 40, 1).convert("1"), "TIFF"),
    "real.tif": encode(random_image(60, 40, 1).convert("F"), "TIFF"),
    "a.webp": encode(random_image(60, 40), "WEBP"),
    "a.bmp": encode(random_image(60, 40), "BMP"),
    "Ünïcode 照片 🐻.jpg": JPEG,
    "sp a  ce.jpg": JPEG,
    "x" * 251 + ".jpg": JPEG,
}
BAD = {
    "cut.jpg": (JPEG[:400], "(?i)truncated"),
    "empty.jpg": (b"", "^empty$"),
    "text.jpg": (b"no picture at all", "^not an image$"),
    "bomb.png": (decompression_bomb(), "100000 x 100000 .* above the limit of 179; only a JPEG may be larger"),
    "head.png": (GOOD["alpha.png"][:60], "."),
    "headless.jpg": (JPEG[20:], "not an image"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Make a folder with all of these files, and with links, a pipe and a folder named like photographs."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, content in [*GOOD.items(), *((name, content) for name, (content, _) in BAD.items())]:
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    (folder / "link.jpg").symlink_to("a.jpg")
    return folder


def read(path, number=0):
    return PixelReader(SIDE, VIEWS, 1)((data.Photo(path.parent, path.name, 0), number))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", [name for name in GOOD if name != "deep.png"])  # see test_levels.py
def test_odd_photographs_are_read_as_openais_pipeline_sees_them(zoo, name):
    """Pillow resizes the whole photograph, crops, then converts to RGB; nothing applies the EXIF orientation."""
    with Image.open(zoo / name) as image:
        short = min(image.size)
        size = tuple(SIDE * length // short for length in image.size)
        resized = image.resize(size, Image.BICUBIC)
        left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
        expected = np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)).convert("RGB"))
    np.testing.assert_array_equal(read(zoo / name), expected)
    for number in range(1, len(VIEWS)):
        assert read(zoo / name, number).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize(
    "name, message",
    [
        *[(name, message) for name, (_, message) in BAD.items()],
        ("folder.jpg", "not a file"),
        ("pipe.jpg", "not a file"),
        ("dangling.jpg", "No such file"),
        ("circle.jpg", "symbolic links"),
        ("absent.jpg", "No such file"),
    ],
)
def test_what_cannot_be_read_says_why(zoo, name, message):
    for number in range(len(VIEWS)):
        with pytest.raises(Unreadable, match=message):
            read(zoo / name, number)


def test_a_file_without_permission_says_so(zoo, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)  # root may read everything
    with pytest.raises(Unreadable, match="^Permission denied$"):
        read(zoo / "a.jpg")


@pytest.mark.parametrize("size", [(3000, 10), (10, 3000), (1, 300), (9000, 70), (26, 2700), (40000, 300)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_of_a_very_long_photograph_the_crop_is_computed_alone(monkeypatch, size, mode):
    """Computing only the crop changes one pixel in a thousand, by one level; 30,000 x 10 above stays the same."""
    image = random_image(*size).convert(mode)
    cropped = preprocess.crop(image, 64).astype(int)
    monkeypatch.setattr(preprocess, "MAX_ASPECT_RATIO", 10**9)
    difference = np.abs(cropped - preprocess.crop(image, 64))
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_very_long_photographs_take_little_memory():
    """Resized as a whole, 30,000 x 10 would become 672,000 x 224 pixels, 600 MB."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    for size in ((30000, 10), (10, 30000), (100000, 1), (1, 100000)):
        preprocess.crop(random_image(*size), 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000 and time.perf_counter() - started < 2


@pytest.mark.parametrize("n", [600, pytest.param(30000, marks=pytest.mark.slow)])
def test_damaged_bytes_give_a_row_or_a_cause_and_nothing_else(zoo, tmp_path, n):
    """Reads files of all formats that are cut off or have bytes changed at random."""
    rng = random.Random(n)
    whole = [
        GOOD[name]
        for name in (
            "a.jpg",
            "alpha.png",
            "palette.png",
            "moving.gif",
            "bits.tif",
            "real.tif",
            "a.webp",
            "a.bmp",
            "cmyk.jpg",
            "deep.png",
        )
    ]
    outcomes = {"row": 0, "cause": 0}
    for i in range(n):
        content = bytearray(rng.choice(whole))
        for _ in range(rng.choice([0, 1, 3, 30])):
            content[rng.randrange(min(len(content), rng.choice([60, len(content)])))] = rng.randrange(256)
        path = tmp_path / "damaged.jpg"
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            assert read(path, i % len(VIEWS)).shape == (SIDE, SIDE, 3)
            outcomes["row"] += 1
        except Unreadable as error:
            assert str(tmp_path) not in str(error)
            outcomes["cause"] += 1
    print(outcomes)
    assert min(outcomes.values()) > n / 10


# ---- the encoder ----


def fake_encoder(device="cpu", store=None):
    """Return an Encoder without a model; a test replaces what would compute."""
    return Encoder(
        SimpleNamespace(visual=SimpleNamespace(output_dim=4)),
        SimpleNamespace(resolution=SIDE),
        "abc",
        device,
        32,
        store,
    )


@pytest.mark.parametrize("device, cores, processes", [("cpu", 64, 2), ("cpu", 1, 1), ("cuda", 64, 16), ("cuda", 4, 4)])
def test_for_a_gpu_more_processes_read(monkeypatch, device, cores, processes):
    started = []

    def image_features(model, images, read, batch_size, workers):
        started.append(workers)
        yield features.Encoded(np.ones((len(list(images)), 4), np.float32), {})

    monkeypatch.setattr(features, "image_features", image_features)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    fake_encoder(device).encode_photos([data.Photo(Path(), "x.jpg", 0)] * 100, "photographs")
    assert started == [processes]


def test_a_photograph_that_is_given_twice_fails_twice(zoo, tmp_path, monkeypatch):
    """With a store it is read once, since both have the same key."""

    def image_features(model, images, read, batch_size, workers):
        failures = {i: "damaged" for i, (photo, _) in enumerate(images) if photo.name == "text.jpg"}
        rows = np.ones((len(images), 4), np.float32)
        rows[list(failures)] = np.nan
        yield features.Encoded(rows, failures)

    monkeypatch.setattr(features, "image_features", image_features)
    photos = [data.Photo(zoo, name, 0) for name in ("a.jpg", "text.jpg", "a.jpg", "text.jpg")]
    for store in (None, Store(tmp_path, 4)):
        rows, failures = fake_encoder(store=store).encode_photos(photos)
        assert np.isnan(rows).all(axis=1).tolist() == [False, True] * 2
        assert failures == {1: "damaged", 3: "damaged"}


def test_official_weights_are_hashed_as_the_file_they_are(monkeypatch, tiny_weights):
    monkeypatch.setattr(download, "official", lambda name, folder: {"ViT-B/32": tiny_weights}[name])
    assert Encoder.load(Path("ViT-B/32"), "cpu").weights_sha256 == weights.sha256(tiny_weights)


def test_a_rows_key_is_what_it_was_when_stores_were_filled(zoo):
    """The key ignores the words of the progress bar, and differs between training and test photographs of one name."""
    asked = []
    store = SimpleNamespace(
        missing=lambda keys: asked.extend(keys) or [], get=lambda keys: np.ones((len(keys), 4), np.float32)
    )
    photo, status = data.Photo(zoo, "a.jpg", 0), os.stat(zoo / "a.jpg")
    for desc, photo_set in (("train", "train"), ("whatever", "train"), ("test", "test")):
        fake_encoder(store=store).encode_photos([photo], desc, photo_set)
    fake_encoder(store=store).encode_views([photo], ("plain", "flip"), 7)
    expected = [("plain", None, "train"), ("plain", None, "train"), ("plain", None, "test"), ("flip", [7, 1], "train")]
    assert asked == [
        make_key(
            "abc",
            FEATURES_VERSION,
            "cpu",
            "photo",
            32,
            PIL.__version__,
            view,
            drawn,
            photo_set,
            "a.jpg",
            [status.st_size, status.st_mtime_ns],
        )
        for view, drawn, photo_set in expected
    ]


# ---- whole runs ----


@pytest.fixture
def here(work, contest, monkeypatch):
    """Return `work` as the current folder, with its own copy of the photographs."""
    (work / "Dataset").unlink()
    shutil.copytree(contest / "Dataset", work / "Dataset")
    monkeypatch.chdir(work)
    return work


def truncate(folder, *names):
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:300])


def test_training_photographs_that_fail_are_left_out_and_listed(here, capfd):
    truncate(
        here / "Dataset/TrainSet", "Animal_Bear/0.jpg", *[f"Animal_Bee/{i}.jpg" for i in range(5)], "no group/2.jpg"
    )
    assert extract_feature.main([]) == 0
    captured = capfd.readouterr()
    listed = (here / "output/unreadable.txt").read_text().splitlines()
    assert (
        len(listed) == 7
        and listed[0].startswith("Dataset/TrainSet/Animal_Bear/0.jpg: ")
        and all("runcated" in line for line in listed)
    )
    assert (
        "7 photographs cannot be read and are left out; output/unreadable.txt lists them:" in captured.err
        and captured.err.count("runcated") == 5
    )
    support = artifacts.read(here / "output/support.npz", artifacts.Support)
    val = artifacts.read(here / "output/val.npz", artifacts.Split)
    assert (
        np.bincount(support.labels, minlength=6).tolist() == [4, 2, 4, 0, 4, 4]
        and len(support.names) + len(val.names) == 28
    )
    assert np.isfinite(support.features).all() and np.isfinite(val.features).all()

    shutil.copy(here / "Dataset/TrainSet/Animal_Bee/5.jpg", here / "Dataset/TrainSet/Animal_Bear/0.jpg")
    for i in range(5):
        draw(here / f"Dataset/TrainSet/Animal_Bee/{i}.jpg", 1, i)
    draw(here / "Dataset/TrainSet/no group/2.jpg", 4, 2)
    assert extract_feature.main([]) == 0 and not (here / "output/unreadable.txt").exists()  # mended


@pytest.mark.parametrize("select", ["first", "random"])
def test_shots_that_fail_are_replaced(here, select):
    truncate(here / "Dataset/TrainSet", *[f"Animal_Bee/{i}.jpg" for i in range(3)])
    assert extract_feature.main(["--select", select]) == 0
    support = artifacts.read(here / "output/support.npz", artifacts.Support)
    assert np.bincount(support.labels, minlength=6).tolist() == [4, 4, 4, 0, 4, 4]


def test_a_class_that_loses_all_its_photographs_is_an_error(here, capfd):
    truncate(here / "Dataset/TrainSet", *[f"Animal_Bee/{i}.jpg" for i in range(7)])
    assert extract_feature.main([]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: class 'Animal_Bee': none of its training photographs that were considered can be read; "
        "output/unreadable.txt"
    )
    assert len((here / "output/unreadable.txt").read_text().splitlines()) == 7 and not list(
        (here / "output").glob("*.npz")
    )


def test_strict_stops_at_the_first(here, capfd):
    truncate(here / "Dataset/TestSetB", "image_3.jpg", "image_4.jpg")
    assert extract_feature.main(["--strict"]) == 1
    assert (
        capfd.readouterr()
        .err.splitlines()[-1]
        .startswith("error: Dataset/TestSetB/image_3.jpg: cannot be read as a photograph (")
    )
    assert not list((here / "output").glob("*.npz"))


def test_no_test_photograph_that_can_be_read_is_an_error(here, capfd):
    truncate(here / "Dataset/TestSetB", *[f"image_{i}.jpg" for i in range(1, 14)])
    assert extract_feature.main([]) == 1 and "none of the 13 test photographs can be read" in capfd.readouterr().err


def test_a_test_photograph_that_fails_has_its_line_by_the_prior(here, capfd):
    names = [f"image_{i}.jpg" for i in (2, 5, 6, 7, 9, 10, 13)]
    truncate(here / "Dataset/TestSetB", *names)
    assert extract_feature.main([]) == 0 and train_adapter.main(["--method", "tip"]) == 0
    capfd.readouterr()
    assert predict.main([]) == 0
    printed = capfd.readouterr().out
    lines = dict(line.split(" ", 1) for line in (here / "result.txt").read_text().splitlines())
    assert list(lines) == [f"image_{i}.jpg" for i in range(1, 14)] and len({lines[name] for name in names}) == 1
    assert (
        "7 of them could not be read and got the classes that are likeliest over all others:" in printed
        and printed.count("runcated") == 5
        and "…" in printed
    )
    adapter = artifacts.read(here / "output/adapter.npz", artifacts.Adapter)
    test = artifacts.read(here / "output/test.npz", artifacts.Split)
    assert sorted(test.meta["unreadable"]) == sorted(names) and len(test.names) == 6
    mean = softmax(predict.predict_logits(adapter, test.features)).mean(axis=0)
    assert lines[names[0]] == " ".join(map(str, np.argsort(-mean, kind="stable")[:5]))


def test_every_odd_photograph_gets_a_line(here, zoo, capfd):
    """Classifies the whole zoo, read by several processes, with names in Unicode, with spaces, of 255 bytes."""
    shutil.rmtree(here / "Dataset/TestSetB")
    (here / "Dataset/TestSetB").symlink_to(zoo)
    for i in range(70):
        (here / f"Dataset/TrainSet/no group/more {i}.jpg").write_bytes(JPEG)
    with open(here / "Dataset/train.txt", "a") as file:
        file.writelines(f"TrainSet/no group/more {i}.jpg 4\n" for i in range(70))
    assert extract_feature.main([]) == 0 and train_adapter.main(["--method", "tip"]) == 0 and predict.main([]) == 0
    names = [line.rsplit(" ", 5)[0] for line in (here / "result.txt").read_text(encoding="utf-8").splitlines()]
    assert sorted(names) == sorted([*GOOD, *BAD, "pipe.jpg", "dangling.jpg", "circle.jpg", "link.jpg"])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\r.jpg", "a\u2028b.jpg"])
def test_a_name_with_a_line_break_is_refused(here, capfd, name):
    draw(here / "x.jpg", 0, 0)
    shutil.copy(here / "x.jpg", here / "Dataset/TestSetB" / name)
    assert extract_feature.main([]) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1 and errors.startswith("error: Dataset/TestSetB/a\\") and "rename it" in errors


def test_photographs_given_to_predict_that_fail_are_named_and_skipped(here, extracted, zoo, capfd):
    shutil.copytree(extracted[0], here / "output")
    assert train_adapter.main(["--method", "tip"]) == 0
    capfd.readouterr()
    assert (
        predict.main(
            [str(zoo / name) for name in ("a.jpg", "cut.jpg", "one.png", "empty.jpg")]
            + ["--topk", "1", "--sheet", "sheet.png"]
        )
        == 1
    )
    captured = capfd.readouterr()
    assert [line for line in captured.out.splitlines() if line.startswith("/")] == [
        str(zoo / "a.jpg"),
        str(zoo / "one.png"),
    ] and (here / "sheet.png").exists()
    errors = captured.err.splitlines()[-2:]
    assert errors[0] == f"{zoo / 'empty.jpg'}: cannot be read as a photograph (empty)"
    assert errors[1].startswith(f"error: {zoo / 'cut.jpg'}: cannot be read as a photograph (") and errors[1].endswith(
        "; 2 of 4 left out"
    )


def test_predict_takes_photographs_of_any_name(here, tiny_weights, capfd):
    """It prints their names only; result.txt, a file of lines, does not get them."""
    names = ["caf\udce9.jpg", "a\nb.jpg", "caf\udce9/a\x1b.jpg"]
    for name in names:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(JPEG)
    assert (
        predict.main([names[0], names[1], "caf\udce9", "--classes", "cat, dog", "--topk", "1", "--sheet", "sheet.png"])
        == 0
    )
    assert capfd.readouterr().out.splitlines()[::2] == [
        "caf\\udce9.jpg",
        "a\\nb.jpg",
        "caf\\udce9/a\\x1b.jpg",
        "sheet.png: 3 photographs",
    ]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        data.read_task(tmp_path)


@pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_photographs_are_listed_in_seconds(tmp_path, n):
    (tmp_path / "train/cat").mkdir(parents=True)
    (tmp_path / "test").mkdir()
    for i in range(n):
        os.mknod(tmp_path / f"test/image_{i}.jpg")
    started = time.perf_counter()
    task = data.read_task(tmp_path)
    assert (
        len(task.test) == n and task.test[-1].name == f"image_{n - 1}.jpg" and time.perf_counter() - started < n / 5000
    )
