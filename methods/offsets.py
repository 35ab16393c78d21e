"""The offsets that a blend adds to the logits of new classes, so that they can win against base classes.

Both offsets are chosen by hiding the shots of one of CLASS_PARTS parts of the base classes in turn (folds.py). The
offset for far classes is also limited so that they win few of the correct validation rows of base classes. experts.py
defines near and far classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.rows import subset

from .experts import EXPERTS, N_ANCHORED, Experts, learn_experts
from .folds import Fold, split_classes

MAX_OFFSET, OFFSET_STEP = 60.0, 0.1  # the grid of offsets: from -MAX_OFFSET up to, but not including, MAX_OFFSET
MAX_LOST_SHARE = 0.001  # share of the correct validation rows of base classes that may be lost to far classes
OFFSET_SAFETY = 0.9  # the far offset stays below the one that loses MAX_LOST_SHARE by at least a tenth of its size


class Offsets(NamedTuple):
    """Numbers added to the logits of new classes, near and far."""

    near: float = 0.0
    far: float = 0.0


def choose_offsets(
    text: Text, support: Support, folds: Sequence[Fold], fold_experts: Sequence[Experts], weights: np.ndarray
) -> Offsets:
    """Choose the offsets of a blend on the folds.

    Parameters
    ----------
    text : Text
    support : Support
    folds : sequence of Fold
        At least one.
    fold_experts : sequence of Experts
        The experts learned from each fold's shots.
    weights : float array of shape (experts,)
        The weights of the blend.
    """
    near, far = _offsets_by_hiding(text, support, folds, weights)
    return Offsets(near, min(far, _max_far_offset(folds, fold_experts, weights)))


class _Gains(NamedTuple):
    """The change of the score if a row is predicted as its likeliest new class instead of its likeliest base class."""

    margin: np.ndarray  # float (M,), logit of the likeliest base class minus logit of the likeliest new class
    gain: np.ndarray  # float64 (M,), change of the score; below 0 if the base class is correct


def _offsets_by_hiding(text: Text, support: Support, folds: Sequence[Fold], weights: np.ndarray) -> Offsets:
    """Return the best offsets for the hidden classes: near with all experts, far without the Gaussians."""
    base = np.unique(support.labels)
    # The weight of new-class accuracy relative to base-class accuracy: the square root of the ratio of new to base
    # classes, between that ratio, with which the accuracy over all rows would be optimised, and 1, with which the sum
    # of both accuracies would be. In docs/log.md ("The blend", classes without shots), the harmonic mean of both
    # accuracies is 71.1 % so and 71.6 % with 1, the accuracy over all rows 73.1 % and 70.8 %.
    new_weight = (len(text.names) / len(base) - 1) ** 0.5
    near, far = [], []
    # Each part is hidden once, whatever the number of folds, which take turns: experts are not learned anew for every
    # pair of part and fold.
    for hidden, fold in zip(split_classes(base), cycle(folds)):
        if len(hidden) == len(base):  # a single base class: without it, there is nothing to learn from
            continue
        experts = learn_experts(text, subset(support, fold.shots & ~np.isin(support.labels, hidden)))
        logits = experts.logits(fold.features)
        base_labels = np.flatnonzero(experts.is_base)
        base_logits = np.tensordot(weights, logits, 1)[:, base_labels]
        for n_experts, gains in ((len(EXPERTS), near), (N_ANCHORED, far)):
            new_logits = np.tensordot(weights[:n_experts], logits[:n_experts], 1)[:, hidden]
            gains.append(_gains_if_new(base_logits, base_labels, new_logits, hidden, fold.labels, new_weight))
    return Offsets(_best_offset(near), _best_offset(far))


def _gains_if_new(
    base_logits: np.ndarray,
    base_labels: np.ndarray,
    new_logits: np.ndarray,
    new_labels: np.ndarray,
    labels: np.ndarray,
    new_weight: float,
) -> _Gains:
    """Return the gains of rows with labels (M,), for logits (M, B) of base classes and (M, H) of new classes.

    The score is the accuracy on base rows plus `new_weight` times the accuracy on new rows.
    """
    is_new = np.isin(labels, new_labels)
    gain = new_weight * (new_labels[new_logits.argmax(axis=1)] == labels) / max(1, is_new.sum())
    loss = (base_labels[base_logits.argmax(axis=1)] == labels) / max(1, (~is_new).sum())
    return _Gains(base_logits.max(axis=1) - new_logits.max(axis=1), gain - loss)


def _best_offset(gains: Sequence[_Gains]) -> float:
    """Return the offset with the highest expected gain over all rows, or 0 if there are none.

    A row is predicted new with P = sigmoid(offset − margin).
    """
    from scipy.special import expit

    if not gains:
        return 0.0
    margin, gain = map(np.concatenate, zip(*gains))
    offsets = np.arange(-MAX_OFFSET, MAX_OFFSET, OFFSET_STEP)
    return float(offsets[np.argmax([gain @ expit(offset - margin) for offset in offsets])])


def _max_far_offset(folds: Sequence[Fold], fold_experts: Sequence[Experts], weights: np.ndarray) -> float:
    """Return the highest allowed offset of far classes.

    Consider the validation rows that are correct if only base classes compete. At some offset, far classes win
    MAX_LOST_SHARE of these rows; the result is lower than that offset by the share 1 − OFFSET_SAFETY of its absolute
    value. Without such rows or without far classes, it is MAX_OFFSET.
    """
    margins = [np.zeros(0)]
    for experts, fold in zip(fold_experts, folds):
        is_far = ~(experts.is_base | experts.is_near)
        if is_far.any():
            logits = np.tensordot(weights, experts.logits(fold.features), 1)
            base_logits = np.where(experts.is_base, logits, -np.inf)
            correct = base_logits.argmax(axis=1) == fold.labels
            margins.append(base_logits[correct].max(axis=1) - logits[correct][:, is_far].max(axis=1))
    margins = np.concatenate(margins)
    if not len(margins):
        return MAX_OFFSET
    limit = float(np.quantile(margins, MAX_LOST_SHARE))
    return limit * (OFFSET_SAFETY if limit > 0 else 2 - OFFSET_SAFETY)
