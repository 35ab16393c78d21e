"""Grid search of alpha and beta for a Tip-Adapter cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.prompts import class_groups
from fewshot.rows import has_shots
from tip_adapter_utils import Cache

from .folds import Fold, split_classes
from .intervals import count_correct

# The authors' grid: i·(max − 0.1)/steps + 0.1. They set its maxima by hand for each data set, from 3 to 30 for alpha
# and from 7 to 30 for beta. The maxima here are well above the best pairs on the validation rows of Stanford Cars and
# SUN397.
ALPHAS = 0.1 + np.arange(20) * (10 - 0.1) / 20
BETAS = 0.1 + np.arange(200) * (20 - 0.1) / 200
MIN_NEW_ACCURACY_KEPT = 0.9  # share of their zero-shot accuracy that classes with hidden shots must keep


class GridPoint(NamedTuple):
    """A pair of alpha and beta, and its scores."""

    alpha: float
    beta: float
    scores: dict[str, float]  # "rows", "top1", "zero_shot_top1"; "base_top1" and "new_top1" if classes were hidden


def search(text: Text, support: Support, folds: Sequence[Fold], caches: Iterable[Cache]) -> GridPoint:
    """Return the pair that classifies the most validation rows of all folds correctly.

    Validation rows do not show how many rows of new classes, which have no shots, are misclassified as base classes. If
    a task has new classes, the base classes are therefore divided into parts, and the shots of one part at a time are
    hidden. A pair is allowed only if the hidden classes keep MIN_NEW_ACCURACY_KEPT of their zero-shot accuracy; if no
    pair does, all are allowed. A tie goes to the smallest beta, then the smallest alpha, as in the authors' loop.

    Parameters
    ----------
    text : Text
    support : Support
    folds : sequence of Fold
        At least one.
    caches : iterable of Cache
        The cache of each fold's shots. A generator keeps only one of them in memory.
    """
    all_rows, base, new, parts = _Tally(), _Tally(), _Tally(), hidden_class_parts(text, support)
    for fold, cache in zip(folds, caches):
        all_rows.add(text, fold.features, fold.labels, cache)
        for hidden in parts:
            visible, is_new = ~cache.values[:, hidden].any(axis=1), np.isin(fold.labels, hidden)
            others = Cache(cache.keys[visible], cache.values[visible])
            base.add(text, fold.features[~is_new], fold.labels[~is_new], others)
            new.add(text, fold.features[is_new], fold.labels[is_new], others)
    objective = all_rows.top1.copy()
    keeps_new = new.top1 >= MIN_NEW_ACCURACY_KEPT * new.zero_shot_top1
    if new.rows and keeps_new.any():  # else zero-shot accuracy is near 0, and the condition is dropped
        objective[~keeps_new] = -1
    best = np.unravel_index(objective.argmax(), objective.shape)
    scores = {
        "rows": all_rows.rows,
        "top1": float(all_rows.top1[best]),
        "zero_shot_top1": float(all_rows.zero_shot_top1),
    }
    if new.rows:
        scores.update(base_top1=float(base.top1[best]), new_top1=float(new.top1[best]))
    return GridPoint(float(ALPHAS[best[1]]), float(BETAS[best[0]]), scores)


def hidden_class_parts(text: Text, support: Support) -> list[np.ndarray]:
    """Split the base classes into the parts whose shots are hidden in turn, and return the labels of each part.

    The parts imitate the new classes. If any group (fewshot/prompts.py) has both base and new classes, the parts are
    those of `split_classes`. If base and new classes share no group, as with the contest's cars, each part is one group
    of base classes. The list is empty if there are no new classes, or if base and new classes share no group and all
    base classes are in one group.
    """
    groups, is_base = np.array(class_groups(text)), has_shots(support.labels, len(text.names))
    base = np.flatnonzero(is_base)
    if is_base.all():
        return []
    if set(groups[is_base]) & set(groups[~is_base]):
        return split_classes(base)
    parts = [base[groups[base] == group] for group in dict.fromkeys(groups[base])]
    return parts if len(parts) > 1 else []


class _Tally:
    """The number of correctly classified rows at each pair of the grid, and the number of all rows."""

    def __init__(self):
        self.correct, self.rows = np.zeros((len(BETAS), 1 + len(ALPHAS)), np.int64), 0

    def add(self, text: Text, features: np.ndarray, labels: np.ndarray, cache: Cache) -> None:
        alphas = [0, *ALPHAS]  # alpha 0 is zero-shot
        self.correct += count_correct(features, labels, text.features, text.scale, *cache, alphas, BETAS)
        self.rows += len(labels)

    @property
    def top1(self) -> np.ndarray:
        """The accuracy of each pair, float (len(BETAS), len(ALPHAS))."""
        return self.correct[:, 1:] / max(1, self.rows)

    @property
    def zero_shot_top1(self) -> float:
        """The accuracy of the zero-shot logits alone."""
        return self.correct[0, 0] / max(1, self.rows)
