"""What choices are made on: validation rows or, where there are none, shots that are left out in turn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Split, Support
from fewshot.rows import index_in_class

FOLDS = 4  # that blend makes of the shots of a class; and parts of the classes whose shots are hidden in turn


class Fold(NamedTuple):
    """Shots to learn from, and rows that validate what was learned."""

    shots: np.ndarray  # bool (N,)
    features: np.ndarray  # (M, D)
    labels: np.ndarray  # (M,)


class Folds(NamedTuple):
    """All folds of a task; a setting is good if it does well on the rows of all of them together."""

    folds: list[Fold]  # none where nothing can be left out
    how: str  # in words

    @property
    def learn_from_all_shots(self) -> bool:
        """Whether there is one fold, of all shots: what it learns is the result, and nothing need be learned again."""
        return len(self.folds) == 1 and bool(self.folds[0].shots.all())


def make_folds(support: Support, val: Split | None, most: int | None = None) -> Folds:
    """The folds of a task.

    With labelled validation rows there is one fold: all shots, and these rows. Without, each fold leaves out one shot
    of every class, whose view 0 validates: the plain photograph, as test photographs are. A class of a single shot
    keeps it in every fold; if all classes are so, there is no fold.

    Parameters
    ----------
    support : Support
    val : Split or None
    most : int or None
        The highest number of folds: classes of more shots leave out several at a time. Without it there are as many
        folds as the largest class has shots.
    """
    labelled = np.zeros(0, bool) if val is None else val.labels >= 0
    if labelled.any():
        fold = Fold(np.ones(len(support.labels), bool), val.features[labelled], val.labels[labelled])
        return Folds([fold], f"on {labelled.sum()} validation rows")
    turn = index_in_class(support.labels)
    turn = np.where(np.bincount(support.labels)[support.labels] < 2, -1, turn if most is None else turn % most)
    left_out = [turn == i for i in range(turn.max(initial=-1) + 1)]
    if not left_out:
        return Folds([], "defaults: no labelled validation rows, and no class has two shots")
    at_a_time = np.bincount(support.labels[left_out[0]]).max()  # no turn leaves out more than the first
    return Folds(
        [Fold(~out, support.features[out, 0], support.labels[out]) for out in left_out],
        f"leaving {'one shot' if at_a_time == 1 else f'up to {at_a_time} shots'} a class out in turn",
    )


def class_parts(classes: np.ndarray) -> list[np.ndarray]:
    """Labels of classes in FOLDS parts, none of them empty: every fourth class in one."""
    return [classes[part::FOLDS] for part in range(min(FOLDS, len(classes)))]
