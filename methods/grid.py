"""The choice of alpha and beta for a Tip-Adapter cache, over a grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.prompts import groups_of
from fewshot.rows import base_classes
from tip_adapter_utils import Cache

from .folds import Fold, class_parts
from .intervals import count_right

# The authors' grid i·(top − 0.1)/steps + 0.1. Its tops they set by hand for each data set, alpha 3 to 30 and beta 7 to
# 30; those here hold the best validation pair of cars and scenes well inside.
ALPHAS = 0.1 + np.arange(20) * (10 - 0.1) / 20
BETAS = 0.1 + np.arange(200) * (20 - 0.1) / 200
MIN_NEW_ACCURACY_KEPT = 0.9  # of their zero-shot accuracy, by classes whose shots are hidden


class GridPoint(NamedTuple):
    """A pair of the grid, and how well it does."""

    alpha: float
    beta: float
    figures: dict[str, float]  # "rows", "top1", "zero_shot_top1"; "base_top1" and "new_top1" where classes were hidden


def search(text: Text, support: Support, folds: Sequence[Fold], caches: Iterable[Cache]) -> GridPoint:
    """The pair that classifies most validation rows of all folds rightly.

    No validation row shows how base classes, those with shots, swallow new ones. So where a task has new classes, the
    shots of one part of the base classes after the other are hidden, and only pairs count with which the hidden classes
    keep MIN_NEW_ACCURACY_KEPT of their zero-shot accuracy. Of equally good pairs the one of the smallest beta, then
    alpha, is taken, as in the authors' loop.

    Parameters
    ----------
    text : Text
    support : Support
    folds : sequence of Fold
        At least one.
    caches : iterable of Cache
        The cache of each fold's shots; asked for one at a time.
    """
    right, base, new, parts = _Tally(), _Tally(), _Tally(), classes_to_hide(text, support)
    for fold, cached in zip(folds, caches):
        right.add(text, fold.features, fold.labels, cached)
        for hidden in parts:
            kept, is_new = ~cached.values[:, hidden].any(axis=1), np.isin(fold.labels, hidden)
            others = Cache(cached.keys[kept], cached.values[kept])
            base.add(text, fold.features[~is_new], fold.labels[~is_new], others)
            new.add(text, fold.features[is_new], fold.labels[is_new], others)
    merit = right.top1.copy()
    keeps_new = new.top1 >= MIN_NEW_ACCURACY_KEPT * new.zero_shot_top1
    if new.rows and keeps_new.any():  # no pair keeps it where zero-shot knows next to nothing
        merit[~keeps_new] = -1
    best = np.unravel_index(merit.argmax(), merit.shape)
    figures = {"rows": right.rows, "top1": float(right.top1[best]), "zero_shot_top1": float(right.zero_shot_top1)}
    if new.rows:
        figures.update(base_top1=float(base.top1[best]), new_top1=float(new.top1[best]))
    return GridPoint(float(ALPHAS[best[1]]), float(BETAS[best[0]]), figures)


def classes_to_hide(text: Text, support: Support) -> list[np.ndarray]:
    """Parts of the base classes, as labels, to hide in the way that the new classes are missing.

    If a new class is of a group that has base classes, each part is every fourth base class. If all new classes are of
    groups of their own, as the contest's cars are, each part is a group of base classes; where these are all of one
    group, nothing is hidden. Nor is it where there are no new classes.
    """
    groups, is_base = np.array(groups_of(text)), base_classes(support.labels, len(text.names))
    base = np.flatnonzero(is_base)
    if is_base.all():
        return []
    if set(groups[is_base]) & set(groups[~is_base]):
        return class_parts(base)
    parts = [base[groups[base] == group] for group in dict.fromkeys(groups[base])]
    return parts if len(parts) > 1 else []


class _Tally:
    """Rows classified rightly, of those seen, at every pair of the grid."""

    def __init__(self):
        self.right, self.rows = np.zeros((len(BETAS), 1 + len(ALPHAS)), np.int64), 0

    def add(self, text: Text, features: np.ndarray, labels: np.ndarray, cached: Cache) -> None:
        alphas = [0, *ALPHAS]  # 0 is zero-shot
        self.right += count_right(features, labels, text.features, text.scale, *cached, alphas, BETAS)
        self.rows += len(labels)

    @property
    def top1(self) -> np.ndarray:
        """(len(BETAS), len(ALPHAS))"""
        return self.right[:, 1:] / max(1, self.rows)

    @property
    def zero_shot_top1(self) -> float:
        return self.right[0, 0] / max(1, self.rows)
