"""A Tip-Adapter cache on top of a linear classifier: keys are fine-tuned for what that classifier leaves over.

The logits are those of the linear classifier, which is held fixed, plus alpha·exp(−beta·(1 − f·Kᵀ))·V: the formula of
tip_adapter_utils.py with another base than zero-shot. Two things decide whether the keys can learn anything. The base
logits of a shot come from a classifier that was learned without this shot; the final one already fits it. And a shot
does not see its own key, at which its affinity would be 1.

Letters: C classes, B base classes, N shots, V views of each shot, D feature width, M rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.rows import chunks, has_shots, log_softmax, one_hot, shot_rows, subset
from jclip.progress import track
from tip_adapter_utils import Cache, Epoch, fine_tune, tip_logits

from .folds import Fold, learn_from_all_shots
from .linear import Linear
from .outcome import Settings

BETA = 3.0
TRAIN_ALPHA = 5.0  # while keys are fine-tuned
ALPHAS = TRAIN_ALPHA * np.array([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1])
SCORED_EPOCHS = (5, 10)  # the learning rate falls to 0 at the last
LEARNING_RATE = 1e-3
# Bounds of the work. Where the base logits of all views would have more elements, there is no cache: to learn the base
# without each shot would take minutes (1,000 classes of more than 4 shots).
MAX_LOGITS = 2**22
MAX_AFFINITIES = 2**24  # elements; of more rows, those that are trained or scored on are drawn at random


class Rows(NamedTuple):
    """Rows with the base logits to which the cache is added."""

    features: np.ndarray  # float32 (M, D)
    labels: np.ndarray  # int64 (M,)
    logits: np.ndarray  # float32 (M, C)
    shots: np.ndarray  # int64 (M,), the shot that a row is a view of; -1 for other rows


class TunedCache(NamedTuple):
    """A fine-tuned cache, and its settings."""

    cache: Cache
    alpha: float
    epoch: int

    def record(self) -> dict[str, float]:
        """Return the settings for metrics.json."""
        return {"alpha": self.alpha, "beta": BETA, "epoch": self.epoch}


def can_learn(support: Support, n_classes: int) -> bool:
    """Return whether keys can be fine-tuned: two classes have shots, one has several, and the task is not too large.

    Without a second shot of a class there is no classifier that knows the class but not the shot, and no other key.
    """
    counts, (shots, views, _) = np.bincount(support.labels), support.features.shape
    return counts.max() > 1 and np.count_nonzero(counts) > 1 and shots * views * n_classes <= MAX_LOGITS


def left_out_rows(support: Support, folds: Sequence[Fold], classifiers: Sequence[Linear]) -> Rows:
    """Return all views of the shots that some fold leaves out, with the logits of the fold's classifier."""
    parts = []
    for fold, classifier in zip(folds, classifiers):
        out = np.flatnonzero(~fold.shots).repeat(support.features.shape[1])
        features = support.features[~fold.shots].reshape(len(out), -1)
        parts.append(Rows(features, support.labels[out], classifier.logits(features), out))
    return Rows(*map(np.concatenate, zip(*parts)))


def tune_cache(
    text: Text, support: Support, rows: Rows, folds: Sequence[Fold], classifiers: Sequence[Linear], settings: Settings
) -> TunedCache | None:
    """Fine-tune a cache, with the epoch and alpha chosen on folds, or return None if it earns nothing.

    Chosen is what gains the most log-likelihood over the linear classifier alone, less the standard error of that gain:
    a cache is only added if the rows show more than chance. Only base classes compete, as for the weights of the blend.

    Parameters
    ----------
    text : Text
    support : Support
    rows : Rows
        The rows to learn from, as `left_out_rows` returns them.
    folds, classifiers : sequences of Fold and Linear
        The folds to choose on, and the linear classifier learned from the shots of each.
    settings : Settings

    Raises
    ------
    ClipError
        If Jittor or the device cannot be used.
    """
    is_base = has_shots(support.labels, len(text.names))
    gains, every = _Gains(), np.ones(len(support.labels), bool)
    for fold, classifier in zip(folds, classifiers):
        held = _limit(_fold_rows(fold, classifier, is_base), len(support.labels), settings.seed)
        for number, epoch in enumerate(_tune(text, support, rows, fold.shots, settings), 1):
            if number in SCORED_EPOCHS:
                tuned = Cache(epoch.keys.numpy(), _values(support.labels[fold.shots], is_base))
                gains.add(number, held, tuned, is_base)
    number, alpha = gains.best()
    if not alpha:
        return None
    if not learn_from_all_shots(folds) or number != SCORED_EPOCHS[-1]:
        epoch = next(islice(_tune(text, support, rows, every, settings), number - 1, None))
        tuned = Cache(epoch.keys.numpy(), _values(support.labels, is_base))
    return TunedCache(tuned, alpha, number)


def _values(labels: np.ndarray, is_base: np.ndarray) -> np.ndarray:
    """Return values (N, C) with which the cache adds to a class the mean of its keys' affinities.

    A class without shots gets the mean over the base classes, so that the cache as a whole does not speak against it.
    """
    values = one_hot(labels, len(is_base))
    values /= np.maximum(1, values.sum(axis=0))
    values[:, ~is_base] = values[:, is_base].sum(axis=1, keepdims=True) / is_base.sum()
    return values


def _fold_rows(fold: Fold, classifier: Linear, is_base: np.ndarray) -> Rows:
    kept = is_base[fold.labels]
    features = fold.features[kept]
    return Rows(features, fold.labels[kept], classifier.logits(features), np.full(len(features), -1))


def _limit(rows: Rows, width: int, seed: int) -> Rows:
    """Return the rows, or some drawn at random if a matrix of all of them would exceed MAX_AFFINITIES elements."""
    most = max(1, MAX_AFFINITIES // width)
    if len(rows.labels) <= most:
        return rows
    kept = np.sort(np.random.default_rng(seed).choice(len(rows.labels), most, replace=False))
    return Rows(*(part[kept] for part in rows))


def _tune(text: Text, support: Support, rows: Rows, shots: np.ndarray, settings: Settings) -> Iterator[Epoch]:
    """Fine-tune the keys of some shots, a bool array (N,), on their own rows, and yield each Epoch.

    Rows of a class with a single key are left out; if no others are there, nothing is yielded.
    """
    some = subset(support, shots)
    counts = np.bincount(some.labels, minlength=len(text.names))
    kept = shots[rows.shots] & (counts[rows.labels] > 1)
    rows = _limit(Rows(*(part[kept] for part in rows)), len(some.labels), settings.seed)
    if not len(rows.labels):
        return
    base = np.flatnonzero(counts)  # all base classes: no fold leaves out all shots of a class
    number = np.cumsum(counts > 0) - 1
    run = fine_tune(
        (rows.features, number[rows.labels]),
        text,
        Cache(shot_rows(some.features), one_hot(number[some.labels], len(base))),
        TRAIN_ALPHA,
        BETA,
        epochs=SCORED_EPOCHS[-1],
        lr=LEARNING_RATE,
        seed=settings.seed,
        device=settings.device,
        base_logits=rows.logits[:, base],
        own_keys=(np.cumsum(shots) - 1)[rows.shots],
    )
    yield from track(run, "cache", " epoch", SCORED_EPOCHS[-1], leave=False)


class _Gains:
    """The gain in log-likelihood that a cache brings to held rows, for each epoch and alpha."""

    def __init__(self):
        self.gains: dict[int, list[np.ndarray]] = {number: [] for number in SCORED_EPOCHS}

    def add(self, number: int, rows: Rows, cache: Cache, is_base: np.ndarray) -> None:
        label = (np.cumsum(is_base) - 1)[rows.labels]
        for part in chunks(len(label), len(cache.keys) + is_base.sum()):
            base, each = rows.logits[part][:, is_base], np.arange(len(label[part]))
            evidence = tip_logits(np.float32(0), rows.features[part] @ cache.keys.T, cache.values[:, is_base], 1, BETA)
            logs = [log_softmax(base + alpha * evidence)[each, label[part]] for alpha in (0, *ALPHAS)]
            self.gains[number].append(np.array(logs[1:]) - logs[0])

    def best(self) -> tuple[int, float]:
        """Return the epoch and alpha of the highest gain less its standard error, or 0 and 0 if none is above 0."""
        best = 0.0, 0, 0.0
        for number, gains in self.gains.items():
            if gains:
                gain = np.concatenate(gains, axis=1).astype(np.float64)  # (alphas, M)
                sure = gain.mean(axis=1) - gain.std(axis=1) / np.sqrt(max(1, gain.shape[1]))
                best = max(best, (float(sure.max()), number, float(ALPHAS[sure.argmax()])))
        return best[1:]
