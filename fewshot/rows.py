"""Rows of features and their labels: the steps that every classifier of a few-shot task begins with.

Letters: C classes, N shots, V views of each, D feature width, n rows. Features are float32 rows of unit L2 norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .artifacts import Support

CHUNK = 2**18  # numbers worked on at a time: they stay in the processor's cache, and memory stays flat


def unit_rows(rows: np.ndarray, length: float = 1.0) -> np.ndarray:
    """Scale rows (..., D) to the L2 norm `length`; the dtype stays.

    `jclip.features.unit` does the same in float64. Features that come as float32 are scaled here, in float32.
    """
    return length * rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def shot_rows(features: np.ndarray) -> np.ndarray:
    """One row a shot, the renormalised mean of its views: (N, V, D) -> (N, D)."""
    return unit_rows(features.mean(axis=1))


def all_views(support: Support) -> tuple[np.ndarray, np.ndarray]:
    """Every view of every shot as a row of its own: features (N·V, D) and labels (N·V,)."""
    n, views, width = support.features.shape
    return support.features.reshape(n * views, width), support.labels.repeat(views)


def subset(support: Support, shots: np.ndarray | slice) -> Support:
    """The support set of some of its shots, given as bool (N,), as indices or as a slice."""
    return Support(support.features[shots], support.labels[shots], support.names[shots])


def base_classes(labels: np.ndarray, classes: int) -> np.ndarray:
    """Which of the classes have shots, bool (C,), for the labels (N,) of all shots."""
    return np.isin(np.arange(classes), labels)


def index_in_class(labels: np.ndarray) -> np.ndarray:
    """Number the rows of each class from 0: [2, 0, 2] -> [0, 0, 1], int64 (n,)."""
    counts, order = np.bincount(labels), np.argsort(labels, kind="stable")
    indices = np.empty(len(labels), np.int64)
    indices[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return indices


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels (n,) as float32 (n, C)."""
    values = np.zeros((len(labels), classes), np.float32)  # rows of np.eye would take C x C numbers first
    values[np.arange(len(labels)), labels] = 1
    return values


def class_sums(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Sum of the rows (n, D) of each class, (C, D); 0 where a class has none. Many times as fast as np.add.at."""
    from scipy.sparse import csr_matrix  # predict.py need not wait for it

    n = len(labels)
    return csr_matrix((np.ones(n, rows.dtype), (labels, np.arange(n))), (classes, n)) @ rows


def chunks(rows: int, width: int, numbers: int | None = None) -> Iterator[slice]:
    """Slices of `rows` rows, so many in each that rows of `width` numbers hold `numbers` (default: CHUNK) together."""
    size = max(1, (numbers or CHUNK) // max(1, width))
    return (slice(start, start + size) for start in range(0, rows, size))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities, float (M, C), of logits (M, C)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
