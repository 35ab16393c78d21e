"""How many rows a cache classifies rightly at every beta and alpha of a grid, exactly, without trying any alpha.

With zero-shot logits z and cache logits c (those of alpha 1), the true class wins over class j where
alpha·(c_true − c_j) > z_j − z_true. The right side is the class's `gap`, the bracket on the left its `lead`. Each class
so bounds alpha from one side, and a row is classified rightly in one interval of alpha.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fewshot.rows import chunks, index_in_class


def count_right(
    features, labels, text, scale, keys, values, alphas: Sequence[float], betas: Sequence[float]
) -> np.ndarray:
    """Count the rows that each beta and alpha classify rightly.

    Parameters
    ----------
    features, labels : arrays of shape (M, D) and (M,)
        The rows. Of classes with equal logits the one of the lowest label wins.
    text, scale : array of shape (C, D), float
        Of the zero-shot logits.
    keys, values : arrays of shape (N, D) and (N, C)
        The cache; values are one-hot.
    alphas, betas : sequences of float
        The grid; alphas ascend.

    Returns
    -------
    int64 array of shape (len(betas), len(alphas))
    """
    key_order = _key_order(values)
    keys = keys[key_order.keys]

    def changes(rows: slice) -> np.ndarray:
        return _changes(features[rows], labels[rows], text, scale, keys, key_order, alphas, betas)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of Python's lock while it computes
        parts = pool.map(changes, chunks(len(features), len(keys) + len(text)))
        return sum(parts, np.zeros((len(betas), len(alphas) + 1), np.int64))[:, :-1].cumsum(axis=1)


def _changes(features, labels, text, scale, keys, key_order: _KeyOrder, alphas, betas) -> np.ndarray:
    """By how many right rows the count changes from one alpha to the next, int64 (len(betas), len(alphas) + 1)."""
    features = features.T
    true = labels, np.arange(features.shape[1])  # indices of the true classes in arrays (C, rows)
    gap = _gap(scale * (text @ features), true)
    winning = _WinningAlphas(gap[key_order.classes], np.asarray(alphas, features.dtype))
    true = np.argsort(key_order.classes)[labels], true[1]  # the same where classes come in that order
    distance = 1 - keys @ features
    affinity, cached = np.empty_like(distance), np.zeros(gap.shape, distance.dtype)
    change = np.zeros((len(betas), len(alphas) + 1), np.int64)
    for of_beta, beta in zip(change, betas):
        with np.errstate(over="ignore", invalid="ignore"):  # long fine-tuned keys and a large beta
            np.exp(np.multiply(distance, -beta, out=affinity), out=affinity)
            cached[:] = 0
            for start, stop in key_order.slices:
                cached[: stop - start] += affinity[start:stop]
            first, end = winning.interval(cached[true] - cached)
        of_beta += np.bincount(first, minlength=len(of_beta)) - np.bincount(end, minlength=len(of_beta))
    return change


class _KeyOrder(NamedTuple):
    """An order of keys and classes in which slices of affinities can be added up by class.

    Classes come by falling number of keys. The first slice holds a key of every class that has keys, the second a
    second key of every class that has two, and so on; in each slice keys stand in the order of their classes.
    """

    classes: np.ndarray  # (C,), labels in order
    keys: np.ndarray  # (N,), indices in order
    slices: list[tuple[int, int]]  # (start, stop) of the keys in order


def _key_order(values: np.ndarray) -> _KeyOrder:
    labels = values.argmax(axis=1)
    counts = np.bincount(labels, minlength=values.shape[1])
    classes = np.argsort(-counts, kind="stable")
    indices = index_in_class(labels)
    keys = np.lexsort((np.argsort(classes)[labels], indices))
    ends = np.bincount(indices).cumsum().tolist()
    return _KeyOrder(classes, keys, list(zip([0, *ends], ends)))


def _gap(zero_shot: np.ndarray, true: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """By how much each class is ahead of the row's true class in zero-shot logits, (C, rows) both; never 0.

    A tie is decided as argmax does, by a few units in the last place: a class of a lower label is put ahead, one of a
    higher behind. The true class itself is put behind, so that it never stands in its own way.
    """
    gap = zero_shot - zero_shot[true]
    lower = np.sign(true[0] - np.arange(len(gap))[:, None]).astype(gap.dtype)
    gap += lower * (4 * np.spacing(np.abs(gap)) + gap.dtype.type(1e-20))
    gap[true] = -1
    return gap


class _WinningAlphas:
    """The alphas with which each row's true class wins: alpha·lead > gap over each class, for the gap (C, rows).

    Divided by alpha·gap: 1/alpha is below lead/gap of all classes that are ahead, and above that of all that are
    behind.
    """

    def __init__(self, gap: np.ndarray, alphas: np.ndarray):
        inverse, ahead = 1 / gap, gap > 0
        self.ahead, self.behind = np.where(ahead, inverse, 0), np.where(ahead, 0, inverse)
        self.not_ahead = np.where(ahead, 0, np.inf).astype(gap.dtype)
        with np.errstate(divide="ignore"):
            self.alphas = -1 / alphas  # ascending, as the alphas

    def interval(self, lead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the first alpha that wins and of the first behind it that does not, int64 (rows,) each.

        They are equal where no alpha wins, as where affinities overflow. lead is of shape (C, rows).
        """
        below = (lead * self.ahead + self.not_ahead).min(axis=0)
        above = (lead * self.behind).max(axis=0)
        first = np.searchsorted(self.alphas, -below, "left")  # behind all where it is NaN
        return first, np.maximum(first, np.searchsorted(self.alphas, -above, "right"))
