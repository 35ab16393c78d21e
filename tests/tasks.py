"""Small tasks, made of random numbers, on which the tests train methods."""

from __future__ import annotations

import numpy as np

import methods
from fewshot import artifacts
from fewshot.artifacts import Split, Support, Text
from fewshot.rows import unit_rows
from fewshot.task_features import TaskFeatures
from jclip.features import unit

WIDTH = 24  # of features of `make_task`
CLASSES = ["Animal_Cat", "Animal_Dog", "Food-101_Pie", "Tower"]  # of `write_task`
WEIGHTS = {"weights_sha256": "ab" * 32}


def train(method, text, support, val, settings):
    """The adapter of a method and what it records of its choices."""
    outcome = methods.train(method, text, support, val, settings)
    return outcome.adapter, outcome.record()


def names(what, n):
    return np.array([f"{what} {i}" for i in range(n)], np.str_)


def make_task(rng, classes=12, shots=4, rows=6, noise=0.8, without_shots=(), far=False):
    """Text, support, val and test of classes whose photographs lie around a linear image of their texts.

    So what the texts say can be learned from other classes. With far=True the classes without shots have texts in
    directions of their own, and photographs about them.
    """
    bend = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5
    text = rng.normal(size=(classes, WIDTH)) * (np.arange(WIDTH) < WIDTH // 2)
    if far:
        text[list(without_shots)] = text[list(without_shots)][:, ::-1]
    text = unit(text)
    centres = unit(text + 1.5 * text @ bend)

    def around(labels, views):
        return unit(centres[labels][:, None] + noise * rng.normal(size=(len(labels), views, WIDTH)) / WIDTH**0.5)

    base = np.array([label for label in range(classes) if label not in without_shots])
    of_shots, of_val, of_test = base.repeat(shots), base.repeat(rows), np.arange(classes).repeat(20)
    return (
        Text(text, names("class", classes), 20.0),
        Support(around(of_shots, 2), of_shots, names("shot", len(of_shots))),
        Split(around(of_val, 1)[:, 0], of_val, names("val", len(of_val))),
        Split(around(of_test, 1)[:, 0], of_test, names("test", len(of_test))),
    )


def make_task_with_new_classes(class_names):
    """Ten classes, the last three without shots, which their texts tell apart better than the few noisy shots do."""
    rng = np.random.default_rng(3)
    centres = unit(rng.normal(size=(10, 16)))

    def around(labels, noise):
        return unit(centres[labels] + noise * rng.normal(size=(len(labels), 16)))

    of_shots, of_val = np.repeat(np.arange(7), 2), np.repeat(np.arange(7), 6)
    groups = {"groups": [name.split("_")[0] for name in class_names]}
    return TaskFeatures(
        Text(around(np.arange(10), 0.25), np.array(class_names), 20.0, groups),
        Support(around(of_shots, 0.2)[:, None], of_shots, names("shot", len(of_shots))),
        Split(around(of_val, 0.3), of_val, names("val", len(of_val))),
    )


def make_overlapping_task(classes=60, shots=1, views=5, width=64):
    """More rows than a batch holds, of classes that overlap."""
    rng = np.random.default_rng(3)
    centres, of_shots = unit_rows(rng.standard_normal((classes, width), np.float32)), np.arange(classes).repeat(shots)

    def around(labels):
        return unit_rows(centres[labels] + 0.15 * rng.standard_normal((*labels.shape, width), np.float32))

    of_val = np.arange(200) % classes
    return TaskFeatures(
        Text(around(np.arange(classes)), names("class", classes), 100.0),
        Support(around(np.repeat(of_shots[:, None], views, axis=1)), of_shots, names("shot", len(of_shots))),
        Split(around(of_val), of_val, names("val", 200)),
    )


def write_task(folder, shots=3, validation=True, weights=WEIGHTS):
    """The files of four classes whose photographs cluster away from their texts, so that shots help."""
    rng = np.random.default_rng(5)
    text, centres = unit(rng.normal(size=(4, 32))), rng.normal(size=(4, 32))

    def around(labels, *shape):
        centre = centres[labels].reshape(len(labels), *[1] * (len(shape) - 1), 32)
        return unit(centre + 0.7 * rng.normal(size=(len(labels), *shape)))

    of_shots, of_val = np.arange(4).repeat(shots), np.arange(4).repeat(10)
    folder.mkdir(exist_ok=True)
    artifacts.write(folder / "text.npz", Text(text, np.array(CLASSES), 10.0, {**WEIGHTS, "prompts_sha256": "12"}))
    support = Support(around(of_shots, 2, 32), of_shots, names("shot", len(of_shots)), {**weights, "select": "kmeans"})
    artifacts.write(folder / "support.npz", support)
    if validation:
        artifacts.write(folder / "val.npz", Split(around(of_val, 32), of_val, names("val", 40), WEIGHTS))
