"""The default method: a blend of linear experts, and on top of it a cache with fine-tuned keys.

The weights of the experts are fitted to the validation rows under a prior. Each expert (experts.py) is a matrix and a
bias, so the blend is one matrix and one bias, and its probabilities are calibrated. The cache (cache.py) is added where
it earns something. docs/accuracy.md reports its accuracy, docs/log.md the experiments behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.rows import subset
from fewshot.support import add_validation_rows
from jclip.progress import Progress

from .cache import BETA, TunedCache, can_learn, left_out_rows, tune_cache
from .experts import EXPERTS, N_ANCHORED, Experts, learn_experts
from .folds import Fold, make_folds
from .linear import Linear, linear_adapter
from .offsets import Offsets, choose_offsets
from .outcome import Outcome, Settings
from .regression import cross_entropy

# Used where nothing can be chosen: no folds, a single base class, or no validation row of a base class. These are
# roughly the weights chosen for Stanford Cars and SUN397 at one shot.
DEFAULT_WEIGHTS = dict(zip(EXPERTS, (0.3, 0.6, 0, 0, 0, 0.004, 0, 0.02, 0)))
MAX_LOGITS = 2**26  # elements of the logits of all experts for the validation rows: 0.3 GB
MAX_ITERATIONS = 200  # of the optimiser that fits the weights
MAX_FOLDS = 4  # of the cross-validation over the shots
MIN_BASE_ROWS = 500  # with fewer validation rows of base classes, cross-validation over the shots is added
# Gaussian prior on the weights of experts that are scaled to logits of mean absolute deviation 1: in the middle between
# zero-shot and the regression nearest to it, with a sum about as confident as CLIP itself. Its precision is
# PRIOR_ROWS / rows, so it decides where rows are few and soon yields as they grow; docs/log.md, "Few validation rows".
PRIOR_WEIGHT = 1.5
PRIOR_MEAN = {"zero-shot": PRIOR_WEIGHT, EXPERTS[1]: PRIOR_WEIGHT}
PRIOR_ROWS = 200  # number of rows at which the precision is 1
MIN_SPREAD = 1e-5  # an expert whose logits differ by less, relative to their size, differs by rounding only


class Choice(NamedTuple):
    """The chosen weights and offsets of a blend."""

    weights: np.ndarray  # float64 (experts,)
    offsets: Offsets
    # "rows", "top1" and "zero_shot_top1" of the validation rows; empty if the weights are the defaults
    scores: dict[str, float]
    fold_classifiers: Sequence[Linear] = ()  # the blend of each fold's shots; empty if the weights are the defaults


def blend(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Learn experts from all shots and blend them, with weights and new-class offsets chosen on folds."""
    folds, how = make_folds(support, val, MAX_FOLDS, MIN_BASE_ROWS)
    experts = learn_experts(text, support)
    choice = choose_blend(text, support, folds, experts, settings.seed)
    if folds and not choice.scores:
        how = "defaults: the validation rows cannot compare classes with shots"
    tuned = _tune_cache(text, support, folds, choice, settings)

    def refit(text: Text, support: Support, val: Split) -> Adapter:
        return _adapter(text, learn_experts(text, add_validation_rows(support, val)), choice, tuned)

    return Outcome(
        _adapter(text, experts, choice, tuned),
        how,
        settings=tuned.record() if tuned else {"alpha": 0.0},
        scores=choice.scores,  # of the linear part, without the cache
        weights={name: float(weight) for name, weight in zip(EXPERTS, choice.weights)},
        new_classes=_new_class_record(experts, choice.offsets),
        refit=refit,
    )


def _adapter(text: Text, experts: Experts, choice: Choice, tuned: TunedCache | None) -> Adapter:
    adapter = linear_adapter("blend", text, weighted_sum(experts, choice.weights, choice.offsets))
    if tuned is None:
        return adapter
    return replace(adapter, keys=tuned.cache.keys, values=tuned.cache.values, alpha=tuned.alpha, beta=BETA)


def _tune_cache(
    text: Text, support: Support, folds: Sequence[Fold], choice: Choice, settings: Settings
) -> TunedCache | None:
    """Return the cache on top of the blend, or None if there is nothing to learn or choose it from."""
    if not choice.scores or not can_learn(support, len(text.names)):
        return None
    left_out = [(fold, linear) for fold, linear in zip(folds, choice.fold_classifiers) if not fold.shots.all()]
    if not left_out:  # the validation rows were enough to choose the weights
        shot_folds = make_folds(support, None, MAX_FOLDS).folds
        plain = replace(support, features=support.features[:, :1])  # one view, since learning takes long
        learned = (learn_experts(text, subset(plain, fold.shots)) for fold in shot_folds)
        left_out = [(f, weighted_sum(e, choice.weights, choice.offsets)) for f, e in zip(shot_folds, learned)]
    rows = left_out_rows(support, *zip(*left_out))
    return tune_cache(text, support, rows, folds, choice.fold_classifiers, settings)


def _new_class_record(experts: Experts, offsets: Offsets) -> dict[str, float]:
    if experts.is_base.all():
        return {}
    return {  # in metrics.json, "alike" are the near classes and "strange" the far ones
        "classes_without_shots": int((~experts.is_base).sum()),
        "alike": int(experts.is_near.sum()),
        "offset_alike": offsets.near,
        "offset_strange": offsets.far,
    }


def weighted_sum(experts: Experts, weights: np.ndarray, offsets: Offsets) -> Linear:
    """Return the sum of the experts' classifiers by weights (experts,), with the offsets added for new classes."""
    weight = sum(w * expert.weight for w, expert in zip(weights, experts.classifiers))
    bias = sum(w * expert.bias for w, expert in zip(weights, experts.classifiers))
    offset = np.where(experts.is_base, 0, np.where(experts.is_near, offsets.near, offsets.far))
    return Linear(weight.astype(np.float32), (bias + offset).astype(np.float32))


# ---- choosing weights and offsets ----


def choose_blend(text: Text, support: Support, folds: Sequence[Fold], experts: Experts, seed: int) -> Choice:
    """Return the weights and offsets chosen on the folds, or the defaults if the folds cannot decide.

    Parameters
    ----------
    text : Text
    support : Support
    folds : sequence of Fold
    experts : Experts
        Learned from all shots.
    seed : int
        Used to draw a subset of the validation rows if there are too many.
    """
    is_base = experts.is_base
    limited = [_limit_rows(fold, len(text.names), len(folds), seed) for fold in folds]
    if is_base.sum() == 1 or not any(is_base[fold.labels].any() for fold in limited):
        return _default_choice(is_base)
    fold_experts = [
        experts if fold.shots.all() else learn_experts(text, subset(support, fold.shots)) for fold in limited
    ]
    rows = _base_rows(limited, fold_experts)
    weights = fit_weights(*rows, np.array([PRIOR_MEAN.get(name, 0.0) for name in EXPERTS]))
    offsets = Offsets() if is_base.all() else choose_offsets(text, support, limited, fold_experts, weights)
    fold_classifiers = [weighted_sum(experts, weights, offsets) for experts in fold_experts]
    return Choice(weights, offsets, _scores(rows, weights), fold_classifiers)


def _default_choice(is_base: np.ndarray) -> Choice:
    """Return the default weights and no offsets; with new classes, the Gaussian experts get weight 0.

    The Gaussians' logits have a level of their own, so new classes would need an offset, which cannot be chosen here.
    """
    weights = np.array(list(DEFAULT_WEIGHTS.values()))
    if not is_base.all():
        weights[N_ANCHORED:] = 0
    return Choice(weights, Offsets(), {})


def _limit_rows(fold: Fold, n_classes: int, n_folds: int, seed: int) -> Fold:
    """Return the fold with a random subset of its validation rows if their logits would exceed MAX_LOGITS."""
    max_rows = max(1, MAX_LOGITS // (len(EXPERTS) * n_classes * n_folds))
    if len(fold.labels) <= max_rows:
        return fold
    kept = np.sort(np.random.default_rng(seed).choice(len(fold.labels), max_rows, replace=False))
    return Fold(fold.shots, fold.features[kept], fold.labels[kept])


class _BaseRows(NamedTuple):
    """The validation rows of base classes from all folds, with the logits of base classes only."""

    logits: np.ndarray  # float32 (experts, M, B), B base classes
    labels: np.ndarray  # int64 (M,), indices of base classes


def _base_rows(folds: Sequence[Fold], fold_experts: Sequence[Experts]) -> _BaseRows:
    is_base = fold_experts[0].is_base  # the same in every fold: no fold leaves out all shots of a class
    base_index = np.cumsum(is_base) - 1  # label -> number among the base classes
    logits, labels = [], []
    for experts, fold in zip(fold_experts, folds):
        is_base_row = is_base[fold.labels]
        logits.append(experts.logits(fold.features[is_base_row])[:, :, is_base])
        labels.append(base_index[fold.labels[is_base_row]])
    return _BaseRows(np.concatenate(logits, axis=1), np.concatenate(labels))


def fit_weights(logits: np.ndarray, labels: np.ndarray, prior_mean: np.ndarray) -> np.ndarray:
    """Fit nonnegative weights of experts by maximum a posteriori with a Gaussian prior.

    The rows' probabilities are the softmax of the weighted sum of the experts' logits. The problem is convex. An expert
    whose logits do not differ between classes, or are not finite, gets the weight 0. If that is so for all experts, the
    result is the prior's mean as it is: the rows say nothing, and there is no scale to divide it by.

    Parameters
    ----------
    logits : float32 array of shape (experts, M, C)
    labels : int array of shape (M,)
    prior_mean : float array of shape (experts,)
        The prior's mean, for experts that are scaled to logits of mean absolute deviation 1.

    Returns
    -------
    float64 array of shape (experts,)
    """
    from scipy.optimize import minimize

    deviation = np.array([_mean_abs_deviation(expert) for expert in logits])
    used = deviation > 0
    if not used.any():
        return prior_mean.astype(np.float64)  # a copy
    scaled = np.stack([logits[i].ravel() / np.float32(deviation[i]) for i in np.flatnonzero(used)])  # (used, M·C)
    mean, n, each_row = prior_mean[used], len(labels), np.arange(len(labels))

    def objective(weights):
        # as products with flat rows, which run at the speed of memory
        loss, probabilities = cross_entropy((weights.astype(np.float32) @ scaled).reshape(n, -1), labels)
        probabilities[each_row, labels] -= 1
        gradient = (scaled @ probabilities.ravel()).astype(np.float64)
        prior_gradient = PRIOR_ROWS / n * (weights - mean)
        return loss + prior_gradient @ (weights - mean) / 2 / n, (gradient + prior_gradient) / n

    weights, bounds = np.zeros(len(logits)), [(0, None)] * len(scaled)
    with Progress(MAX_ITERATIONS, "weights", " iteration", leave=False) as progress:
        fitted = minimize(
            objective,
            mean + 1 / len(scaled),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": MAX_ITERATIONS},
            callback=lambda _: progress.update(),
        )
    weights[used] = fitted.x / deviation[used]
    return weights


def _mean_abs_deviation(logits: np.ndarray) -> float:
    """Return the mean absolute deviation of logits (M, C) from their mean over classes, or 0 if it is only rounding."""
    if not np.isfinite(logits).all():
        return 0.0
    logits = logits.astype(np.float64)
    deviation = np.abs(logits - logits.mean(axis=1, keepdims=True)).mean()
    return deviation if deviation > MIN_SPREAD * np.abs(logits).mean() else 0.0


def _scores(rows: _BaseRows, weights: np.ndarray) -> dict[str, float]:
    def top1(logits):
        return float((logits.argmax(axis=1) == rows.labels).mean())

    blended, zero_shot = top1(np.tensordot(weights, rows.logits, 1)), top1(rows.logits[0])
    return {"rows": len(rows.labels), "top1": blended, "zero_shot_top1": zero_shot}
