"""Selection of the training photographs that become the shots."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from jclip.progress import track

from .artifacts import Split, Support
from .errors import TaskError

SELECT = ("kmeans", "first", "random")


def subsample(labels: np.ndarray, max_per_class: int | None, seed: int) -> np.ndarray:
    """Draw at most `max_per_class` rows of each class, or take all rows if it is None.

    Parameters
    ----------
    labels : int array of shape (M,)
    max_per_class : int or None
    seed : int

    Returns
    -------
    int64 array of shape (n,), n <= M
        Indices of the rows, in ascending order.
    """
    if max_per_class is None:
        return np.arange(len(labels))
    return _per_class(labels, lambda indices, label: _draw(indices, max_per_class, seed, label))


def select_shots(
    labels: np.ndarray, shots: int, select: str, seed: int, features: np.ndarray | None = None
) -> np.ndarray:
    """Choose the shots of each class; all rows of a class are chosen if there are fewer than `shots`.

    Parameters
    ----------
    labels : int array of shape (M,)
    shots : int
        Number of shots per class.
    select : {"kmeans", "first", "random"}
        "kmeans" chooses the rows nearest to the centres of `shots` clusters, which makes the shots diverse.
    seed : int
    features : float array of shape (M, D), optional
        Unit rows, only needed for "kmeans".

    Returns
    -------
    int64 array of shape (n,)
        Indices of the shots, in ascending order.

    Raises
    ------
    TaskError
        For another value of `select`.
    """
    if select not in SELECT:
        raise TaskError(f"unknown selection {select!r}; expected one of {', '.join(SELECT)}")
    pick = {
        "first": lambda indices, label: indices[:shots],
        "random": lambda indices, label: _draw(indices, shots, seed, label),
        "kmeans": lambda indices, label: indices[_nearest_to_centres(features[indices], shots, seed)],
    }[select]
    return _per_class(labels, lambda indices, label: indices if len(indices) <= shots else pick(indices, label))


def _per_class(labels: np.ndarray, pick) -> np.ndarray:
    """Apply pick(indices of the class, label) to each class and return all picked indices, sorted."""
    by_label = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[by_label], return_index=True)
    classes = list(zip(present, np.split(by_label, starts[1:]))) if len(labels) else []
    chosen = [
        pick(indices, int(label)) for label, indices in track(classes, "choosing photographs", " class", leave=False)
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _draw(indices: np.ndarray, n: int, seed: int, label: int) -> np.ndarray:
    # each class has its own random stream, so that its draw does not depend on the sizes of other classes
    return np.random.default_rng([seed, label]).permutation(indices)[:n]


def _nearest_to_centres(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the indices of k rows: in each k-means cluster, the row nearest to the centre (MacQueen 1967).

    If there are fewer distinct rows than k, other rows are added up to k.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # with fewer distinct rows than clusters, other rows are added below
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(n_clusters=k, n_init=10, random_state=seed).fit(features)
    distance = np.linalg.norm(features - clusters.cluster_centers_[clusters.labels_], axis=1)
    members = (np.flatnonzero(clusters.labels_ == cluster) for cluster in range(k))
    chosen = [int(indices[distance[indices].argmin()]) for indices in members if len(indices)]
    others = [row for row in range(len(features)) if row not in chosen]
    return np.array(chosen + others[: k - len(chosen)])


def add_validation_rows(support: Support, val: Split) -> Support:
    """Return the support set plus the labelled validation rows as shots, each as V equal views."""
    labelled = val.labels >= 0
    views = np.repeat(val.features[labelled][:, None], support.features.shape[1], axis=1)
    return Support(
        np.concatenate([support.features, views]),
        np.concatenate([support.labels, val.labels[labelled]]),
        np.concatenate([support.names, val.names[labelled]]),
    )


class Draw(NamedTuple):
    """Other shots of the same task, and the remaining validation rows."""

    support: Support
    val: Split


def redraw(support: Support, val: Split, seed: int) -> Draw:
    """Draw new shots, the same number per class, from the shots and the labelled validation rows.

    View 0 of a shot stays the plain photograph; its other views are drawn with replacement from its augmented views. A
    former validation row only has the plain view, which is repeated. Rows that are not drawn become the validation set.

    Parameters
    ----------
    support : Support
    val : Split
    seed : int

    Returns
    -------
    Draw
    """
    rng = np.random.default_rng(seed)
    every, counts, views = add_validation_rows(support, val), np.bincount(support.labels), support.features.shape[1]
    drawn = _per_class(
        every.labels, lambda indices, label: rng.permutation(indices)[: counts[label] if label < len(counts) else 0]
    )
    rest = np.setdiff1d(np.arange(len(every.labels)), drawn)
    drawn_views = np.concatenate(
        [np.zeros((len(drawn), 1), np.int64), rng.integers(1, max(2, views), (len(drawn), views - 1))], axis=1
    )
    return Draw(
        Support(every.features[drawn[:, None], drawn_views], every.labels[drawn], every.names[drawn], support.meta),
        Split(every.features[rest, 0], every.labels[rest], every.names[rest], val.meta),
    )
