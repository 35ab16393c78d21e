"""Which training photographs become the shots, and which are looked at."""

from __future__ import annotations

import warnings

import numpy as np

from .artifacts import Split, Support
from .errors import TaskError

SELECT = ("kmeans", "first", "random")


def looked_at(labels: np.ndarray, cap: int | None, seed: int) -> np.ndarray:
    """Indices of at most `cap` rows a class, drawn with `seed`, in ascending order; all of them where cap is None.

    labels int (M,) -> int64 (up to M,)
    """
    if cap is None:
        return np.arange(len(labels))
    return _per_class(labels, lambda rows, label: _drawn(rows, cap, seed, label))


def choose(labels: np.ndarray, shots: int, how: str, seed: int, features: np.ndarray | None = None) -> np.ndarray:
    """Indices of the shots, in ascending order: `shots` rows a class, all rows of a class that has fewer.

    Parameters
    ----------
    labels : int (M,)
    how : "kmeans": the rows nearest the centres of `shots` clusters, so that the shots differ; "first"; "random"
    features : float (M, D), of unit norm; needed for kmeans only
    """
    if how not in SELECT:
        raise TaskError(f"unknown selection {how!r}; expected one of {', '.join(SELECT)}")
    pick = {
        "first": lambda rows, label: rows[:shots],
        "random": lambda rows, label: _drawn(rows, shots, seed, label),
        "kmeans": lambda rows, label: rows[_nearest_centres(features[rows], shots, seed)],
    }[how]
    return _per_class(labels, lambda rows, label: rows if len(rows) <= shots else pick(rows, label))


def _per_class(labels: np.ndarray, pick) -> np.ndarray:
    by_label = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[by_label], return_index=True)
    chosen = (
        [pick(rows, int(label)) for label, rows in zip(present, np.split(by_label, starts[1:]))] if len(labels) else []
    )
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _drawn(rows: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    # a stream of its own for each class: one class's draw does not depend on the others' sizes
    return np.random.default_rng([seed, label]).permutation(rows)[:n]


def _nearest_centres(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    """k different rows: of each k-means cluster the row nearest its centre (MacQueen 1967; scikit-learn's KMeans)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # of fewer different rows than clusters: the rest is filled up below
        clusters = KMeans(n_clusters=k, n_init=10, random_state=seed).fit(features)
    distance = np.linalg.norm(features - clusters.cluster_centers_[clusters.labels_], axis=1)
    chosen = [
        int(members[distance[members].argmin()])
        for members in (np.flatnonzero(clusters.labels_ == c) for c in range(k))
        if len(members)
    ]
    others = [row for row in range(len(features)) if row not in chosen]
    return np.array(chosen + others[: k - len(chosen)])


def redrawn(support: Support, val: Split, seed: int) -> tuple[Support, Split]:
    """Other shots from the same photographs: as many a class, drawn with the seed from shots and labelled validation
    rows together.

    The views of a shot are drawn anew, with replacement, from those that it has beside the plain one; a photograph that
    was a validation row has only that. What is not drawn validates.
    """
    rng = np.random.default_rng(seed)
    known, views = val.labels >= 0, support.features.shape[1]
    plain = np.repeat(val.features[known][:, None], views, axis=1)
    features, labels = np.concatenate([support.features, plain]), np.concatenate([support.labels, val.labels[known]])
    names, wanted = np.concatenate([support.names, val.names[known]]), np.bincount(support.labels)
    shots = _per_class(labels, lambda rows, label: rng.permutation(rows)[: wanted[label] if label < len(wanted) else 0])
    rest = np.setdiff1d(np.arange(len(labels)), shots)
    drawn = np.concatenate(
        [np.zeros((len(shots), 1), np.int64), rng.integers(1, max(2, views), (len(shots), views - 1))], axis=1
    )
    return (
        Support(features[shots[:, None], drawn], labels[shots], names[shots], support.meta),
        Split(features[rest, 0], labels[rest], names[rest], val.meta),
    )
