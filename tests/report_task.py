"""A small task with planted faults and hostile names, made of random numbers and drawn photographs, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import methods
from fewshot import artifacts
from fewshot.artifacts import Split, Support, Text
from jclip.features import unit

HOSTILE_CLASS = "<img src=x onerror=\"document.title='pwned'\">"
CLASSES = ["cat", "dog", HOSTILE_CLASS, 'Tower & \'"bridge"']
# a folder "…<" with a file "script>…": names are paths below the test folder
HOSTILE_NAME = "</script><script>document.title='pwned'</script>.jpg"
BIDI_NAME = "photo\u202egpj.exe.jpg"
LONG_NAME = "长" * 83 + "xx.jpg"  # 255 bytes
SHOTS, VAL, TEST = 5, 4, 12  # photographs of each class
MISLABELLED = 7  # the shot whose label is wrong: a dog that is a cat
COPIED = 2  # the shot whose copy is in the test set
COPY = 5  # the test photograph that is the copy
PAIR = (1, 3, 4)  # the confused pair: of the class PAIR[0], PAIR[2] test photographs look like PAIR[1]
COLOURS = [(200, 60, 50), (60, 160, 70), (60, 90, 200), (210, 180, 60)]


class Planted(NamedTuple):
    """Where the task is."""

    output: Path
    data: Path


def make(folder: Path, method: str = "tip", labelled: bool = True, photographs: bool = True) -> Planted:
    """Write the files of a task, and its photographs as plain folders, and train a method on it."""
    rng = np.random.default_rng(3)
    centres = unit(rng.normal(size=(4, 32)))

    def around(labels):
        return unit(centres[labels] + 0.5 * rng.normal(size=(len(labels), 32)) / 32**0.5)

    of_shots, of_val, of_test = (np.arange(4).repeat(n) for n in (SHOTS, VAL, TEST))
    shots, val, test = around(of_shots), around(of_val), around(of_test)
    shots[MISLABELLED] = around(np.array([0]))[0]
    rows = PAIR[0] * TEST + np.arange(PAIR[2])
    test[rows] = around(np.full(PAIR[2], PAIR[1]))
    test[COPY] = unit(shots[COPIED] + 0.005 * rng.normal(size=32))
    names = test_names()
    text = Text(
        unit(centres + 0.5 * rng.normal(size=(4, 32)) / 32**0.5), np.array(CLASSES), 20.0, {"groups": list("AABB")}
    )
    support = Support(shots[:, None], of_shots, np.array(_train_names("shot", of_shots)))
    validation = Split(val, of_val, np.array(_train_names("val", of_val)))
    unreadable = {"broken <b>.jpg": "not an image"}
    split = Split(test, of_test if labelled else np.full(len(of_test), -1), np.array(names), {"unreadable": unreadable})
    adapter = methods.train(method, text, support, validation, methods.Settings(device="cpu")).adapter
    output, data = folder / "output", folder / "data"
    output.mkdir(parents=True)
    for name, part in {"text": text, "support": support, "val": validation, "test": split, "adapter": adapter}.items():
        artifacts.write(output / f"{name}.npz", part)
    if photographs:
        for name, label in zip(support.names, of_shots):
            _draw(data / name, COLOURS[label], rng)
        for name, label in zip(names, of_test):
            _draw(data / "test/all" / name.removeprefix("all/"), COLOURS[label], rng)
        for number in range(len(CLASSES)):  # so that data is a task; the names of the classes are in text.npz
            (data / f"train/{number}").mkdir(parents=True, exist_ok=True)
    return Planted(output, data)


def test_names() -> list[str]:
    """Return the names of the test photographs, some of them hostile."""
    names = [f"all/image_{i}.jpg" for i in range(4 * TEST)]
    names[1:4] = [f"all/{HOSTILE_NAME}", f"all/{BIDI_NAME}", f"all/{LONG_NAME}"]
    return names


test_names.__test__ = False


def _train_names(kind: str, labels: np.ndarray) -> list[str]:
    return [f"train/{label}/{kind}_{i}.jpg" for i, label in enumerate(labels)]


def _draw(path: Path, colour: tuple, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(colour) + rng.normal(0, 20, (60, 80, 1))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, "JPEG")
