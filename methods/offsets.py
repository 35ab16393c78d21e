"""Offsets: what a blend adds to the logits of new classes, those without shots, so that base classes leave them room.

Both offsets are found by hiding the shots of a quarter of the base classes in turn, and one for far classes also by how
many validation rows of base classes it costs. experts.py says what near and far classes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.rows import subset

from .experts import EXPERTS, N_ANCHORED, Experts, learn_experts
from .folds import Fold, class_parts

MAX_OFFSET, OFFSET_STEP = 60.0, 0.1  # offsets are tried up to this, so finely
MAX_TAKEN = 0.001  # share of the validation rows that far classes may take from base classes
OFFSET_SAFETY = 0.9  # share that is taken of the offset at which they take so many


class Offsets(NamedTuple):
    """Added to the logits of new classes."""

    near: float = 0.0
    far: float = 0.0


def choose_offsets(
    text: Text, support: Support, folds: Sequence[Fold], fold_experts: Sequence[Experts], weights: np.ndarray
) -> Offsets:
    """Choose the offsets of a blend.

    Parameters
    ----------
    text : Text
    support : Support
    folds : sequence of Fold
        At least one.
    fold_experts : sequence of Experts
        Those of each fold's shots.
    weights : float array of shape (experts,)
        The weights of the blend.
    """
    near, far = _offsets_by_hiding(text, support, folds, weights)
    return Offsets(near, min(far, _max_far_offset(folds, fold_experts, weights)))


class _Calls(NamedTuple):
    """What speaks for calling a row new, that is of a new class."""

    lead: np.ndarray  # (M,), by how much the likeliest base class leads the likeliest new one, in logits
    worth: np.ndarray  # (M,), gained by calling the row new; below 0 where that is wrong


def _offsets_by_hiding(text: Text, support: Support, folds: Sequence[Fold], weights: np.ndarray) -> Offsets:
    """The offsets that suit hidden classes best: as near classes, and as far ones, without the Gaussians."""
    base = np.unique(support.labels)
    # Of new rows against base rows. 1 would mean the harmonic mean of both accuracies, and the ratio of the numbers of
    # classes accuracy over all rows; the harmonic mean is flat between the two.
    new_worth = (len(text.names) / len(base) - 1) ** 0.5
    near, far = [], []
    for hidden, fold in zip(class_parts(base), cycle(folds)):
        if len(hidden) == len(base):
            continue
        experts = learn_experts(text, subset(support, fold.shots & ~np.isin(support.labels, hidden)))
        logits = experts.logits(fold.features)
        base_logits = np.tensordot(weights, logits, 1)[:, experts.is_base]
        for n_experts, calls in ((len(EXPERTS), near), (N_ANCHORED, far)):
            new_logits = np.tensordot(weights[:n_experts], logits[:n_experts], 1)[:, hidden]
            still_base = np.flatnonzero(experts.is_base)
            calls.append(_new_calls(base_logits, still_base, new_logits, hidden, fold.labels, new_worth))
    return Offsets(*(_best_offset(*map(np.concatenate, zip(*calls))) if calls else 0.0 for calls in (near, far)))


def _new_calls(
    base_logits: np.ndarray,
    base_classes: np.ndarray,
    new_logits: np.ndarray,
    new_classes: np.ndarray,
    labels: np.ndarray,
    new_worth: float,
) -> _Calls:
    """The calls of rows with labels (M,), whose logits (M, B) and (M, H) are of base classes (B,) and new ones (H,).

    If all base rows are classified rightly they are worth 1 together, and all new rows `new_worth`.
    """
    is_new = np.isin(labels, new_classes)
    gain = new_worth * (new_classes[new_logits.argmax(axis=1)] == labels) / max(1, is_new.sum())
    loss = (base_classes[base_logits.argmax(axis=1)] == labels) / max(1, (~is_new).sum())
    return _Calls(base_logits.max(axis=1) - new_logits.max(axis=1), gain - loss)


def _best_offset(lead: np.ndarray, worth: np.ndarray) -> float:
    """The offset of the highest expected worth, where a row is called new with probability sigmoid(offset − lead)."""
    from scipy.special import expit

    offsets = np.arange(-MAX_OFFSET, MAX_OFFSET, OFFSET_STEP)
    return float(offsets[np.argmax([worth @ expit(offset - lead) for offset in offsets])])


def _max_far_offset(folds: Sequence[Fold], fold_experts: Sequence[Experts], weights: np.ndarray) -> float:
    """The highest offset of far classes that is allowed.

    It is OFFSET_SAFETY times the offset at which far classes take MAX_TAKEN of the validation rows that are classified
    rightly among base classes.
    """
    leads = [np.zeros(0)]
    for experts, fold in zip(fold_experts, folds):
        is_far = ~(experts.is_base | experts.is_near)
        if is_far.any():
            logits = np.tensordot(weights, experts.logits(fold.features), 1)
            base_logits = np.where(experts.is_base, logits, -np.inf)
            right = base_logits.argmax(axis=1) == fold.labels
            leads.append(base_logits[right].max(axis=1) - logits[right][:, is_far].max(axis=1))
    leads = np.concatenate(leads)
    return OFFSET_SAFETY * float(np.quantile(leads, MAX_TAKEN)) if len(leads) else MAX_OFFSET
