"""Views of photographs: what they change, their seeds, and how a list of them is read."""

import argparse

import numpy as np
import pytest
from PIL import Image, ImageOps

import augment


def photo(width=60, height=40, mode="RGB"):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([4 * x % 256, 6 * y % 256, (x + y) % 256], -1).astype(np.uint8)).convert(mode)


def view_of(name, image, seed=1):
    return np.asarray(augment.ALL_VIEWS[name](image, np.random.default_rng(seed)).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", list(augment.ALL_VIEWS))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
@pytest.mark.parametrize("size", [(60, 40), (1, 1), (500, 2), (3, 700)])
def test_every_view_takes_every_picture_and_leaves_it_as_it_was(name, mode, size):
    image = photo(*size) if mode != "I;16" else Image.fromarray(np.asarray(photo(*size, "L")).astype(np.uint16) * 200)
    image = image if mode == "I;16" else image.convert(mode)
    before = image.tobytes()
    view = augment.ALL_VIEWS[name](image, np.random.default_rng(1))
    assert min(view.size) >= 1 and (view.mode == "RGB" or name == "plain") and image.tobytes() == before


@pytest.mark.parametrize("name", ["flip", "jitter", "crop"])
def test_a_view_follows_its_seed_alone(name):
    np.testing.assert_array_equal(view_of(name, photo()), view_of(name, photo()))
    different = {view_of(name, photo(), seed).tobytes() for seed in range(8)}
    assert len(different) == 8


def test_flip_is_a_mirror_but_for_the_light():
    mirrored = np.asarray(ImageOps.mirror(photo())).astype(int)
    flipped = view_of("flip", photo())
    assert (
        np.corrcoef(flipped.ravel(), mirrored.ravel())[0, 1]
        > 0.99
        > np.corrcoef(flipped.ravel(), np.asarray(photo()).ravel())[0, 1]
    )


def test_the_views_of_a_test_photograph_are_its_mirror_image_and_squares_at_its_corners():
    pixels, seven_eighths = np.asarray(photo()).astype(int), 35  # of 40, the shorter side
    np.testing.assert_array_equal(view_of("mirror", photo()), pixels[:, ::-1])
    corners = {
        "centre": (12, 2),
        "top left": (0, 0),
        "top right": (25, 0),
        "bottom left": (0, 5),
        "bottom right": (25, 5),
    }
    for name, (left, top) in corners.items():
        expected = pixels[top : top + seven_eighths, left : left + seven_eighths]
        np.testing.assert_array_equal(view_of(name, photo()), expected)
        np.testing.assert_array_equal(view_of(name, photo(), seed=2), expected)


def test_views_of_a_test_photograph_are_named_in_a_list():
    assert augment.parse_test_views("plain") == ["plain"]
    assert augment.parse_test_views("plain, mirror") == ["plain", "mirror"]
    assert augment.parse_test_views("crops") == list(augment.SQUARES)
    for listed in ("", "flip", "plain,plain", "crop", "crops:2", "centre"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected some of plain, mirror, crops, each once"):
            augment.parse_test_views(listed)


def test_jitter_keeps_every_thing_in_its_place():
    grey = Image.fromarray(np.where(np.arange(60) < 30, 40, 200).astype(np.uint8)[None].repeat(40, 0)).convert("RGB")
    jittered = view_of("jitter", grey)
    assert (
        jittered[:, :30].mean() < jittered[:, 30:].mean() and jittered[:, :30].std() < 3 and jittered[:, 30:].std() < 3
    )


def test_crop_shows_half_to_all_of_the_photograph():
    areas = []
    for seed in range(200):
        box = augment._random_box(120, 90, np.random.default_rng(seed))
        width, height = box[2] - box[0], box[3] - box[1]
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 120 and box[3] <= 90
        assert 0.73 < width / height < 1.37
        areas.append(width * height / (120 * 90))
    assert 0.49 < min(areas) < 0.55 and max(areas) > 0.9


def test_views_are_named_in_a_list():
    assert augment.parse_views("plain,flip,jitter,crop:3") == ["plain", "flip", "jitter", "crop", "crop", "crop"]
    assert augment.parse_views(augment.DEFAULT_VIEWS) == ["plain", "flip", "jitter", "crop"]
    assert augment.parse_views(" plain , crop:63") == ["plain", *["crop"] * 63]


@pytest.mark.parametrize(
    "listed, message",
    [
        ("", "'' is no view; expected plain, flip, jitter, crop, or crop:7 for seven, 64 in all at most"),
        ("flip,plain", "expected plain first, once"),
        ("plain,zoom", "'zoom' is no view"),
        ("plain,crop:0", "'crop:0' is no view"),
        ("plain,crop:x", "'crop:x' is no view"),
        ("plain:2", "expected plain first, once"),
        ("plain,,crop", "'' is no view"),
        ("plain,crop:-1", "'crop:-1' is no view"),
        ("plain,crop:64", "65 views; expected 64 in all at most"),
        ("plain,crop:40,flip:40", "81 views"),
        ("plain,crop:1000000000", "'crop:1000000000' is no view; .*64 in all at most"),
        (f"plain,crop:{'9' * 5000}", "64 in all at most"),
    ],
)
def test_a_bad_list_of_views_is_a_wrong_argument(listed, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        augment.parse_views(listed)


def test_a_views_randomness_depends_on_seed_photograph_and_number():
    streams = {
        augment.view_rng(seed, name, number).random()
        for seed in (1, 2)
        for name in ("a.jpg", "b.jpg")
        for number in (1, 2)
    }
    assert len(streams) == 8
    assert augment.view_rng(1, "a.jpg", 1).random() == augment.view_rng(1, "a.jpg", 1).random()
    assert augment.view_rng(1, "TrainSet/a.jpg", 2).random() == 0.5324119809961645  # in every process, on every day
    # file names that are not UTF-8
    assert augment.view_rng(1, "caf\udce9.jpg", 1).random() != augment.view_rng(1, "caf\udce8.jpg", 1).random()
