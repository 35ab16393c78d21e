"""What every method starts from: its settings, and the rows on which choices are made."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text


@dataclass(frozen=True)
class Settings:
    """What a user may set; a method takes from it what it needs."""

    epochs: int = 20
    lr: float = 1e-3
    seed: int = 1
    device: str = "auto"
    refit: bool = False


class Trial(NamedTuple):
    """Shots to learn from, and rows that judge what was learned."""

    shots: np.ndarray  # bool (N,)
    features: np.ndarray  # (M, D)
    labels: np.ndarray  # (M,)


def trials(support: Support, val: Optional[Split], most: Optional[int] = None) -> tuple[list[Trial], str]:
    """The trials whose rows, all together, make the choices; and how, in words.

    The labelled validation rows judge what all shots teach. Without any, one shot a class is left out in turn and judges
    what the others teach, by its view 0: the plain photograph, as test photographs are. With more than `most` shots a class,
    several are left out at a time, so that there are `most` trials. A class of a single shot is never left out, for nothing
    of it would be left; so there may be no trial at all.
    """
    known = np.zeros(0, bool) if val is None else val.labels >= 0
    if known.any():
        return [Trial(np.ones(len(support.labels), bool), val.features[known], val.labels[known])], f"on {known.sum()} validation rows"
    turn = place_in_class(support.labels)
    turn = np.where(np.bincount(support.labels)[support.labels] < 2, -1, turn if most is None else turn % most)
    left_out = [turn == i for i in range(turn.max(initial=-1) + 1)]
    if not left_out:
        return [], "defaults: no labelled validation rows, and no class has two shots"
    return [Trial(~out, support.features[out, 0], support.labels[out]) for out in left_out], "leaving one shot a class out in turn"


def place_in_class(labels: np.ndarray) -> np.ndarray:
    """Of each row its place among those of its class, from 0; int64 (n,) of labels (n,)."""
    counts, order = np.bincount(labels), np.argsort(labels, kind="stable")
    places = np.empty(len(labels), np.int64)
    places[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


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
    return Adapter(method, text.names, text.features, text.scale, np.zeros((0, width), np.float32), np.zeros((0, classes), np.float32),
                   0.0, 0.0, weight=classifier.weight, bias=classifier.bias)
