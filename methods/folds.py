"""Folds on which settings are chosen: the validation rows, cross-validation over the shots, or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Split, Support
from fewshot.rows import index_in_class

CLASS_PARTS = 4  # number of parts of the base classes whose shots are hidden in turn


class Fold(NamedTuple):
    """Shots to learn from, and rows that validate what was learned."""

    shots: np.ndarray  # bool (N,), True for the shots that are learned from
    features: np.ndarray  # float32 (M, D)
    labels: np.ndarray  # int64 (M,)


class Folds(NamedTuple):
    """All folds of a task; settings are chosen by their score on the validation rows of all folds together."""

    folds: list[Fold]  # empty if no shot can be left out
    how: str  # how settings are chosen, as text for the user


def make_folds(
    support: Support, val: Split | None, max_folds: int | None = None, min_base_rows: int | None = None
) -> Folds:
    """Return the folds of a task.

    Labelled validation rows make one fold, which learns from all shots and validates on these rows. If there are none,
    cross-validation over the shots takes their place: each shot is left out in one fold, which validates on view 0 of
    it, the plain photograph. The first fold leaves out the first shot of every class, the second the second, and so on.
    A class with a single shot keeps it in every fold; if all classes have a single shot, cross-validation has no fold.

    Parameters
    ----------
    support : Support
    val : Split or None
    max_folds : int or None
        The highest number of folds; a class with more shots than folds leaves out several shots per fold. With None,
        there are as many folds as the largest class has shots.
    min_base_rows : int or None
        Cross-validation over the shots is added to the validation rows if fewer than this many of them are of base
        classes. With None, it is used only if there is no labelled validation row.
    """
    labelled = np.zeros(0, bool) if val is None else val.labels >= 0
    if not labelled.any():
        return _folds_of_shots(support, max_folds)
    fold = Fold(np.ones(len(support.labels), bool), val.features[labelled], val.labels[labelled])
    validation = Folds([fold], f"on {labelled.sum()} validation rows")
    if min_base_rows is None or np.isin(fold.labels, support.labels).sum() >= min_base_rows:
        return validation
    shots = _folds_of_shots(support, max_folds)
    if not shots.folds:
        return validation
    return Folds(validation.folds + shots.folds, f"{validation.how} and {shots.how}")


def _folds_of_shots(support: Support, max_folds: int | None) -> Folds:
    """Return the folds of a cross-validation over the shots."""
    fold_of_shot = index_in_class(support.labels)
    if max_folds is not None:
        fold_of_shot %= max_folds
    fold_of_shot[np.bincount(support.labels)[support.labels] < 2] = -1  # never left out
    left_out = [fold_of_shot == i for i in range(fold_of_shot.max(initial=-1) + 1)]
    if not left_out:
        return Folds([], "defaults: no labelled validation rows, and no class has two shots")
    n_left_out = np.bincount(support.labels[left_out[0]]).max()  # per class; no fold leaves out more than the first
    return Folds(
        [Fold(~out, support.features[out, 0], support.labels[out]) for out in left_out],
        f"leaving {'one shot' if n_left_out == 1 else f'up to {n_left_out} shots'} a class out in turn",
    )


def learn_from_all_shots(folds: Sequence[Fold]) -> bool:
    """Return whether the only fold learns from all shots, so that its classifier is already the final one."""
    return len(folds) == 1 and bool(folds[0].shots.all())


def split_classes(classes: np.ndarray) -> list[np.ndarray]:
    """Split the labels of classes into at most CLASS_PARTS non-empty parts, each of every CLASS_PARTS-th class."""
    return [classes[part::CLASS_PARTS] for part in range(min(CLASS_PARTS, len(classes)))]
