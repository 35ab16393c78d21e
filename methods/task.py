"""What every method starts from: its settings, the rows on which choices are made, and shots as rows and by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text


@dataclass(frozen=True)
class Settings:
    """What a user may set; a method takes from it what it needs."""

    epochs: int = 20
    lr: float = 1e-3
    seed: int = 1
    device: str = "auto"


class Trial(NamedTuple):
    """Shots to learn from, and rows that judge what was learned."""

    shots: np.ndarray  # bool (N,)
    features: np.ndarray  # (M, D)
    labels: np.ndarray  # (M,)


class Trials(NamedTuple):
    """What choices are made on."""

    judged: list[Trial]  # their rows, all together, make the choices; may be none
    how: str  # in words

    @property
    def of_all_shots(self) -> bool:
        """Whether what is judged is what all shots teach: it is then the result, and nothing need be learned again."""
        return len(self.judged) == 1 and bool(self.judged[0].shots.all())


def trials(support: Support, val: Split | None, most: int | None = None) -> Trials:
    """The trials of a task.

    The labelled validation rows judge what all shots teach. Without any, one shot a class is left out in turn and
    judges what the others teach, by its view 0: the plain photograph, as test photographs are. With more than `most`
    shots a class, several are left out at a time, so that there are `most` trials. A class of a single shot is never
    left out, for nothing of it would be left; so there may be no trial at all.
    """
    labelled = np.zeros(0, bool) if val is None else val.labels >= 0
    if labelled.any():
        return Trials(
            [Trial(np.ones(len(support.labels), bool), val.features[labelled], val.labels[labelled])],
            f"on {labelled.sum()} validation rows",
        )
    turn = place_in_class(support.labels)
    turn = np.where(np.bincount(support.labels)[support.labels] < 2, -1, turn if most is None else turn % most)
    left_out = [turn == i for i in range(turn.max(initial=-1) + 1)]
    if not left_out:
        return Trials([], "defaults: no labelled validation rows, and no class has two shots")
    at_a_time = np.bincount(support.labels[left_out[0]]).max()  # no turn leaves out more than the first
    return Trials(
        [Trial(~out, support.features[out, 0], support.labels[out]) for out in left_out],
        f"leaving {'one shot' if at_a_time == 1 else f'up to {at_a_time} shots'} a class out in turn",
    )


def place_in_class(labels: np.ndarray) -> np.ndarray:
    """Of each row its place among those of its class, from 0; int64 (n,) of labels (n,)."""
    counts, order = np.bincount(labels), np.argsort(labels, kind="stable")
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def has_shots(labels: np.ndarray, classes: int) -> np.ndarray:
    """Of each class whether any of the labels (n,) is of it, bool (C,)."""
    return np.isin(np.arange(classes), labels)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Float32 (n, C) of labels (n,); rows of np.eye would take C x C numbers first."""
    values = np.zeros((len(labels), classes), np.float32)
    values[np.arange(len(labels)), labels] = 1
    return values


def class_sums(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Sum of each class's rows, (C, D) of rows (n, D) and labels (n,), zero where it has none; many times as fast as
    np.add.at."""
    from scipy.sparse import csr_matrix  # predict.py need not wait for it

    return (
        csr_matrix((np.ones(len(labels), rows.dtype), (labels, np.arange(len(labels)))), (classes, len(labels))) @ rows
    )


def some_of(support: Support, shots) -> Support:
    """The support set of some of its shots: bool (N,), indices or a slice."""
    return Support(support.features[shots], support.labels[shots], support.names[shots])


def shot_rows(features: np.ndarray) -> np.ndarray:
    """One row a shot, the renormalised mean of its views: (N, V, D) -> float32 (N, D)."""
    mean = features.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def all_views(support: Support) -> tuple[np.ndarray, np.ndarray]:
    """Every view of every shot as a row, (N·V, D), and the rows' labels."""
    n, views, width = support.features.shape
    return support.features.reshape(n * views, width), support.labels.repeat(views)


class Linear(NamedTuple):
    """A classifier f·Wᵀ + b."""

    weight: np.ndarray  # (C, D)
    bias: np.ndarray  # (C,)


def zero_shot_classifier(text: Text) -> Linear:
    """The classes' texts times the logit scale (Radford et al. 2021, arXiv:2103.00020)."""
    return Linear(text.scale * text.features, np.zeros(len(text.names), np.float32))


def linear_adapter(method: str, text: Text, classifier: Linear) -> Adapter:
    """An Adapter with an empty cache."""
    width, classes = text.features.shape[1], len(text.names)
    return Adapter(
        method,
        text.names,
        text.features,
        text.scale,
        np.zeros((0, width), np.float32),
        np.zeros((0, classes), np.float32),
        0.0,
        0.0,
        weight=classifier.weight,
        bias=classifier.bias,
    )
