"""The default method: a weighted sum of linear experts, whose weights make the validation rows likeliest.

Each expert (experts.py) is a matrix and a bias, so the blend is one matrix and one bias, and its probabilities are
calibrated. docs/accuracy.md has what it reaches, docs/log.md what was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.rows import subset

from .experts import EXPERTS, N_ANCHORED, Experts, learn_experts
from .folds import FOLDS, Fold, Folds, make_folds
from .linear import Linear, linear_adapter
from .offsets import Offsets, choose_offsets
from .outcome import Outcome, Settings
from .regression import cross_entropy

# Where nothing can be chosen, one shot a class and no validation rows: about what cars and scenes chose there.
DEFAULT_WEIGHTS = dict(zip(EXPERTS, (0.3, 0.6, 0, 0, 0, 0.004, 0, 0.02, 0)))
MAX_LOGITS = 2**26  # of all experts, for the rows that choose their weights: 0.3 GB
PRIOR = 0.01  # of the weights, as a variance of 100 on experts scaled to logits of mean size 1


class Choice(NamedTuple):
    """What a blend is made with."""

    weights: np.ndarray  # float64 (experts,)
    offsets: Offsets
    figures: dict[
        str, float
    ]  # "rows", "top1", "zero_shot_top1" of the validation rows; empty where weights are defaults


def blend(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Experts of all shots, blended with weights and offsets of new classes that are chosen on folds."""
    folds = make_folds(support, val, FOLDS)
    experts = learn_experts(text, support)
    choice = choose(text, support, folds, experts, settings.seed)
    how = folds.how
    if folds.folds and not choice.figures:
        how = "defaults: no row judges how classes with shots are told apart"

    def refit(text: Text, support: Support, val: Split) -> Adapter:
        return _adapter(text, learn_experts(text, with_rows(support, val)), choice)

    return Outcome(
        _adapter(text, experts, choice),
        how,
        figures=choice.figures,
        weights={name: float(weight) for name, weight in zip(EXPERTS, choice.weights)},
        new_classes=_record_of_new_classes(experts, choice.offsets),
        refit=refit,
    )


def _adapter(text: Text, experts: Experts, choice: Choice) -> Adapter:
    return linear_adapter("blend", text, weighted_sum(experts, choice.weights, choice.offsets))


def _record_of_new_classes(experts: Experts, offsets: Offsets) -> dict[str, float]:
    if experts.is_base.all():
        return {}
    return {
        "classes_without_shots": int((~experts.is_base).sum()),
        "alike": int(experts.is_near.sum()),
        "offset_alike": offsets.near,
        "offset_strange": offsets.far,
    }


def weighted_sum(experts: Experts, weights: np.ndarray, offsets: Offsets) -> Linear:
    """The experts' classifiers as one, with the offsets added for new classes."""
    weight = sum(w * expert.weight for w, expert in zip(weights, experts.classifiers))
    bias = sum(w * expert.bias for w, expert in zip(weights, experts.classifiers))
    offset = np.where(experts.is_base, 0, np.where(experts.is_near, offsets.near, offsets.far))
    return Linear(weight.astype(np.float32), (bias + offset).astype(np.float32))


def with_rows(support: Support, val: Split) -> Support:
    """The support set with labelled validation rows as further shots; each counts for all the views that a shot has."""
    labelled = val.labels >= 0
    views = np.repeat(val.features[labelled][:, None], support.features.shape[1], axis=1)
    return Support(
        np.concatenate([support.features, views]),
        np.concatenate([support.labels, val.labels[labelled]]),
        np.concatenate([support.names, val.names[labelled]]),
    )


# ---- choosing ----


def choose(text: Text, support: Support, folds: Folds, experts: Experts, seed: int) -> Choice:
    """Choose weights and offsets on the folds.

    Parameters
    ----------
    text : Text
    support : Support
    folds : Folds
    experts : Experts
        Those of all shots.
    seed : int
        Of the draw of validation rows, where there are too many.
    """
    is_base = experts.is_base
    limited = [_limit_rows(fold, len(text.names), len(folds.folds), seed) for fold in folds.folds]
    if is_base.sum() == 1 or not any(is_base[fold.labels].any() for fold in limited):
        return _default_choice(is_base)
    if folds.learn_from_all_shots:
        fold_experts = [experts]
    else:
        fold_experts = [learn_experts(text, subset(support, fold.shots)) for fold in limited]
    rows = _base_rows(limited, fold_experts)
    weights = fit_weights(*rows)
    offsets = Offsets() if is_base.all() else choose_offsets(text, support, limited, fold_experts, weights)
    return Choice(weights, offsets, _figures(rows, weights))


def _default_choice(is_base: np.ndarray) -> Choice:
    """The defaults. The level of the Gaussians' logits is their own, so new classes would need an offset beside them.

    Where there are new classes, the Gaussians are therefore left out.
    """
    weights = np.array(list(DEFAULT_WEIGHTS.values()))
    if not is_base.all():
        weights[N_ANCHORED:] = 0
    return Choice(weights, Offsets(), {})


def _limit_rows(fold: Fold, classes: int, folds: int, seed: int) -> Fold:
    """The fold with no more validation rows than memory has room for, drawn with the seed."""
    most = max(1, MAX_LOGITS // (len(EXPERTS) * classes * folds))
    if len(fold.labels) <= most:
        return fold
    kept = np.sort(np.random.default_rng(seed).choice(len(fold.labels), most, replace=False))
    return Fold(fold.shots, fold.features[kept], fold.labels[kept])


class _BaseRows(NamedTuple):
    """The validation rows of base classes, of all folds, with these classes alone."""

    logits: np.ndarray  # float32 (experts, M, B)
    labels: np.ndarray  # int64 (M,), indices of base classes


def _base_rows(folds: Sequence[Fold], fold_experts: Sequence[Experts]) -> _BaseRows:
    is_base = fold_experts[0].is_base  # of every fold: none loses a class
    base_index, logits, labels = np.cumsum(is_base) - 1, [], []
    for experts, fold in zip(fold_experts, folds):
        rows = is_base[fold.labels]
        logits.append(experts.logits(fold.features[rows])[:, :, is_base])
        labels.append(base_index[fold.labels[rows]])
    return _BaseRows(np.concatenate(logits, axis=1), np.concatenate(labels))


def fit_weights(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights of at least 0 with which the weighted sum of the experts' logits has the lowest mean cross-entropy.

    The problem is convex. A weak prior decides what the rows leave open: where all rows are classified rightly, larger
    weights would always be better.

    Parameters
    ----------
    logits : float32 array of shape (experts, M, C)
    labels : int array of shape (M,)

    Returns
    -------
    float64 array of shape (experts,)
    """
    from scipy.optimize import minimize

    size = np.abs(logits - logits.mean(axis=2, keepdims=True)).mean(axis=(1, 2)) + 1e-12
    rows, n = np.arange(len(labels)), len(labels)

    def objective(weights):  # of experts scaled to one size, so that the steps are of one size, too
        loss, probabilities = cross_entropy(np.tensordot((weights / size).astype(np.float32), logits, 1), labels)
        probabilities[rows, labels] -= 1
        slope = np.array([np.einsum("mc,mc->", probabilities, expert) for expert in logits], np.float64) / size
        return loss + PRIOR / 2 * weights @ weights / n, (slope + PRIOR * weights) / n

    start, bounds = np.full(len(logits), 1 / len(logits)), [(0, None)] * len(logits)
    return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200}).x / size


def _figures(rows: _BaseRows, weights: np.ndarray) -> dict[str, float]:
    def top1(logits):
        return float((logits.argmax(axis=1) == rows.labels).mean())

    blended, zero_shot = top1(np.tensordot(weights, rows.logits, 1)), top1(rows.logits[0])
    return {"rows": len(rows.labels), "top1": blended, "zero_shot_top1": zero_shot}
