"""Array helpers for feature rows and their labels.

Letters: C classes, N shots, V views of each shot, D feature width, n rows. Features are float32 rows of unit L2 norm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .artifacts import Support

CHUNK = 2**18  # elements per chunk, which fit the CPU cache and bound the memory


def unit_rows(rows: np.ndarray, length: float = 1.0) -> np.ndarray:
    """Return rows (..., D) scaled to the L2 norm `length`, in the same dtype.

    `jclip.features.unit` computes in float64; this function computes in the dtype of the rows.
    """
    return length * rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def shot_rows(features: np.ndarray) -> np.ndarray:
    """Return one row per shot, the normalised mean of its views: (N, V, D) -> (N, D)."""
    return unit_rows(features.mean(axis=1))


def all_views(support: Support) -> tuple[np.ndarray, np.ndarray]:
    """Return each view of each shot as a row: features (N·V, D) and labels (N·V,)."""
    n, views, width = support.features.shape
    return support.features.reshape(n * views, width), support.labels.repeat(views)


def subset(support: Support, shots: np.ndarray | slice) -> Support:
    """Return the support set with only the given shots, a bool array (N,), indices or a slice, and without its meta."""
    return Support(support.features[shots], support.labels[shots], support.names[shots])


def has_shots(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return which classes have shots, bool (C,), from the labels (N,) of all shots."""
    return np.isin(np.arange(n_classes), labels)


def index_in_class(labels: np.ndarray) -> np.ndarray:
    """Number the rows of each class from 0: [2, 0, 2] -> [0, 0, 1], int64 (n,)."""
    counts, order = np.bincount(labels), np.argsort(labels, kind="stable")
    indices = np.empty(len(labels), np.int64)
    indices[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return indices


def one_hot(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return labels (n,) as one-hot rows, float32 (n, C)."""
    values = np.zeros((len(labels), n_classes), np.float32)  # np.eye would allocate C x C elements
    values[np.arange(len(labels)), labels] = 1
    return values


def class_sums(rows: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the sum of the rows (n, D) of each class, (C, D); this is much faster than np.add.at."""
    from scipy.sparse import csr_matrix  # slow to import, and predict.py does not need it

    n = len(labels)
    return csr_matrix((np.ones(n, rows.dtype), (labels, np.arange(n))), (n_classes, n)) @ rows


def chunks(n_rows: int, width: int, max_elements: int | None = None) -> Iterator[slice]:
    """Yield slices over n_rows rows.

    A slice has at most max_elements / width rows (default: CHUNK / width), but at least one.
    """
    size = max(1, (max_elements or CHUNK) // max(1, width))
    return (slice(start, start + size) for start in range(0, n_rows, size))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (n, C) of logits (n, C)."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log-probabilities (n, C) of logits (n, C)."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
