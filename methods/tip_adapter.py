"""The methods zero-shot, Tip-Adapter and Tip-Adapter-F, with the settings of tip_adapter_utils.py chosen on folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.rows import all_views, one_hot, subset
from jclip.progress import track
from tip_adapter_utils import DEFAULT_ALPHA, DEFAULT_BETA, TRAIN_ALPHA, TRAIN_BETA, Cache, Epoch, build_cache, fine_tune

from .folds import Fold, learn_from_all_shots, make_folds
from .grid import search
from .outcome import Outcome, Settings


def zero_shot(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Return the Outcome of zero-shot (Radford et al. 2021, arXiv:2103.00020), an adapter with an empty cache."""
    return Outcome(Adapter.without_cache("zero-shot", text), "nothing to choose")


def tip(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Build Tip-Adapter: the cache of the shots without training, with alpha and beta chosen on folds."""
    folds, how = make_folds(support, val)
    alpha, beta, scores = DEFAULT_ALPHA, DEFAULT_BETA, {}
    if folds:
        caches = (_shots_cache(text, subset(support, fold.shots)) for fold in folds)
        alpha, beta, scores = search(text, support, folds, caches)
    adapter = _adapter("tip", text, _shots_cache(text, support), alpha, beta)
    return Outcome(adapter, how, {"alpha": alpha, "beta": beta}, scores)


def tip_f(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Train Tip-Adapter-F: the keys are fine-tuned up to the best epoch, then alpha and beta are chosen.

    Raises as `fine_tune` does.
    """
    folds, how = make_folds(support, val)
    alpha, beta, scores, epoch, caches = TRAIN_ALPHA, TRAIN_BETA, {}, settings.epochs, []
    if folds:
        epoch, caches = _best_epoch(text, support, folds, settings)
        alpha, beta, scores = search(text, support, folds, caches)
    tuned = caches[0] if learn_from_all_shots(folds) else _tuned_cache(text, support, settings, epoch)
    adapter = _adapter("tip-f", text, tuned, alpha, beta)
    return Outcome(adapter, how, {"alpha": alpha, "beta": beta, "epoch": epoch}, scores)


class _BestEpoch(NamedTuple):
    number: int  # from 1
    caches: list[Cache]  # one per fold, with the keys after this epoch


def _best_epoch(text: Text, support: Support, folds: Sequence[Fold], settings: Settings) -> _BestEpoch:
    """Return the epoch whose keys classify the most validation rows correctly, at the alpha and beta of training.

    With one fold, its best keys are kept during training. With several folds, the keys of that epoch are trained again
    to save memory.
    """
    correct = np.zeros(settings.epochs, np.int64)
    for number, fold in enumerate(folds, 1):
        shots = subset(support, fold.shots)
        for index, epoch in enumerate(_tune(text, shots, settings, f"fold {number} of {len(folds)}", fold)):
            correct[index] += epoch.correct
            if correct.argmax() == index:
                best = epoch
    number = int(correct.argmax()) + 1
    if len(folds) == 1:
        return _BestEpoch(number, [_with_keys(text, shots, best)])
    return _BestEpoch(number, [_tuned_cache(text, subset(support, fold.shots), settings, number) for fold in folds])


def _tuned_cache(text: Text, support: Support, settings: Settings, epoch: int) -> Cache:
    """Return the cache after epoch number `epoch`, from 1, of a run whose learning rate falls over settings.epochs."""
    run = _tune(text, support, settings, f"tuning to epoch {epoch}")
    return _with_keys(text, support, next(islice(run, epoch - 1, None)))


def _tune(text: Text, support: Support, settings: Settings, desc: str, fold: Fold | None = None) -> Iterator[Epoch]:
    """Fine-tune the cache of the shots on all their views, and yield each Epoch, validated on the rows of `fold`."""
    run = fine_tune(
        all_views(support),
        text,
        _shots_cache(text, support),
        epochs=settings.epochs,
        lr=settings.lr,
        seed=settings.seed,
        device=settings.device,
        validation=(fold.features, fold.labels) if fold else None,
    )
    yield from track(run, desc, " epoch", settings.epochs)


def _with_keys(text: Text, support: Support, epoch: Epoch) -> Cache:
    return Cache(epoch.keys.numpy(), one_hot(support.labels, len(text.names)))


def _shots_cache(text: Text, support: Support) -> Cache:
    return build_cache(support.features, support.labels, len(text.names))


def _adapter(method: str, text: Text, cache: Cache, alpha: float, beta: float) -> Adapter:
    return Adapter(method, text.names, text.features, text.scale, *cache, alpha, beta)
