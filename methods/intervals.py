"""Exact counts of the rows that a cache classifies correctly at each beta and alpha, without a loop over alpha.

Let z be the zero-shot logits of a row and c its cache logits at alpha = 1. The true class beats class j if
alpha·lead_j > gap_j, with lead_j = c_true − c_j and gap_j = z_j − z_true. Each class j gives a lower or an upper bound
on alpha, so a row is classified correctly in one interval of alpha.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from fewshot.rows import chunks, index_in_class
from jclip.progress import track


def count_correct(
    features, labels, text, scale, keys, values, alphas: Sequence[float], betas: Sequence[float]
) -> np.ndarray:
    """Count the rows that are classified correctly at each beta and alpha.

    Parameters
    ----------
    features, labels : float32 array of shape (M, D), int array of shape (M,)
        The rows. Of classes with equal logits, the one with the lowest label wins.
    text : float32 array of shape (C, D)
        The texts of the classes.
    scale : float
        The logit scale; the zero-shot logits are scale·features·textᵀ.
    keys, values : float32 arrays of shape (N, D) and (N, C)
        The cache; values are one-hot.
    alphas, betas : sequences of float
        The grid; alphas are at least 0 and in ascending order.

    Returns
    -------
    int64 array of shape (len(betas), len(alphas))
    """
    key_order = _key_order(values)
    keys = keys[key_order.keys]

    def count(rows: slice) -> np.ndarray:
        return _count_changes(features[rows], labels[rows], text, scale, keys, key_order, alphas, betas)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy releases the GIL while it computes
        parts = list(chunks(len(features), len(keys) + len(text)))
        counts = track(pool.map(count, parts), "alpha and beta", " part", len(parts), leave=False)
        return sum(counts, np.zeros((len(betas), len(alphas) + 1), np.int64))[:, :-1].cumsum(axis=1)


def _count_changes(features, labels, text, scale, keys, key_order: _KeyOrder, alphas, betas) -> np.ndarray:
    """Return how the count of correct rows changes from alpha to alpha, int64 (len(betas), len(alphas) + 1)."""
    features = features.T
    true = labels, np.arange(features.shape[1])  # index of each row's true class in an array (C, rows) in label order
    gap = _gap(scale * (text @ features), true)
    winning = _WinningAlphas(gap[key_order.classes], np.asarray(alphas, features.dtype))
    true = np.argsort(key_order.classes)[labels], true[1]  # the same in key_order.classes order
    distance = 1 - keys @ features
    affinity, cache_logits = np.empty_like(distance), np.zeros(gap.shape, distance.dtype)
    changes = np.zeros((len(betas), len(alphas) + 1), np.int64)
    for change, beta in zip(changes, betas):
        with np.errstate(over="ignore", invalid="ignore"):  # fine-tuned keys of a large norm, with a large beta
            np.exp(np.multiply(distance, -beta, out=affinity), out=affinity)
            cache_logits[:] = 0
            for begin, end in key_order.slices:
                cache_logits[: end - begin] += affinity[begin:end]
            start, stop = winning.interval(cache_logits[true] - cache_logits)
        change += np.bincount(start, minlength=len(change))
        change -= np.bincount(stop, minlength=len(change))
    return changes


class _KeyOrder(NamedTuple):
    """An order of keys and classes in which affinities are summed by class slice by slice.

    Classes are sorted by their number of keys, largest first. The first slice holds the first key of each class, the
    second slice the second key of each class that has two, and so on. Keys in a slice are sorted as the classes are.
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
    """Return the zero-shot logit of each class minus that of the row's true class, (C, rows); never 0.

    Ties are broken as argmax breaks them: a few units in the last place are added for classes with a lower label than
    the true class, and subtracted for classes with a higher label. The gap of the true class itself is -1, so that it
    gives no bound.
    """
    gap = zero_shot - zero_shot[true]
    lower = np.sign(true[0] - np.arange(len(gap))[:, None]).astype(gap.dtype)
    gap += lower * (4 * np.spacing(np.abs(gap)) + gap.dtype.type(1e-20))
    gap[true] = -1
    return gap


class _WinningAlphas:
    """The interval of alpha in which each row's true class wins, for the gap (C, rows) of its classes.

    Dividing alpha·lead > gap by alpha·gap gives bounds on 1/alpha: it is below lead/gap for classes with gap > 0
    (ahead), and above lead/gap for classes with gap < 0 (behind).
    """

    def __init__(self, gap: np.ndarray, alphas: np.ndarray):
        inverse, ahead = 1 / gap, gap > 0
        self.ahead, self.behind = np.where(ahead, inverse, 0), np.where(ahead, 0, inverse)
        self.not_ahead = np.where(ahead, 0, np.inf).astype(gap.dtype)
        with np.errstate(divide="ignore"):
            self.alphas = -1 / alphas  # ascending, like the alphas

    def interval(self, lead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the half-open interval [start, stop) of indices of winning alphas, int64 (rows,) each.

        lead has shape (C, rows). start equals stop if no alpha wins, for example where affinities overflow.
        """
        below = (lead * self.ahead + self.not_ahead).min(axis=0)
        above = (lead * self.behind).max(axis=0)
        start = np.searchsorted(self.alphas, -below, "left")  # len(alphas) for NaN
        return start, np.maximum(start, np.searchsorted(self.alphas, -above, "right"))
