"""Tip-Adapter: CLIP's zero-shot logits plus a cache of a few labelled photographs, and how its settings are chosen; all
methods by name.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2207.09519;
constants are those of the authors' code, github.com/gaopengcuhk/Tip-Adapter (main_imagenet.py, utils.py, configs/).

Letters: C classes, N shots, V views of each, D feature width, M rows. Features are float32 rows of unit L2 norm. All is
numpy but the fine-tuning, which imports Jittor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.errors import TaskError
from fewshot.prompts import groups_of
from methods import published
from methods.blend import blend
from methods.task import Settings, Trial, all_views, has_shots, one_hot, place_in_class, shot_rows, some_of, trials

# Where nothing can be chosen: the authors' settings for ImageNet.
DEFAULT_ALPHA, DEFAULT_BETA = 1.17, 1.0
# At which keys are fine-tuned. The authors take beta 1, and set an alpha from 1.17 to 5 by hand for each data set. This
# pair was best, but for a few validation rows, on cars and scenes at 1 to 16 shots; the pair that suits untrained keys
# is worse.
TRAIN_ALPHA, TRAIN_BETA = 4.0, 1.0
# The authors' grid i·(top − 0.1)/steps + 0.1. Its tops they set by hand for each data set, alpha 3 to 30 and beta 7 to
# 30; those here hold the best validation pair of cars and scenes well inside.
ALPHAS = 0.1 + np.arange(20) * (10 - 0.1) / 20
BETAS = 0.1 + np.arange(200) * (20 - 0.1) / 200
HIDDEN = 4  # parts of the classes whose shots are hidden in turn, where some classes have none
KEPT = 0.9  # of their zero-shot accuracy, by classes whose shots are hidden
BATCH_SIZE = 256  # of fine-tuning
CHUNK = 2**18  # numbers worked on at a time: they stay in the processor's cache, and memory stays flat
DEVICE_CHUNK = 2**25  # numbers at a time where Jittor computes: enough for a GPU, and memory stays flat


def tip_logits(zero_shot, affinity, values, alpha, beta):
    """f·Wᵀ·scale + alpha·exp(−beta·(1 − f·Kᵀ))·V: the zero-shot logits plus what the cache says.

    Parameters
    ----------
    zero_shot : (M, C), cosine similarities f·Wᵀ with the classes' texts times the logit scale
    affinity : (M, N), similarities f·Kᵀ with the cache's keys
    values : (N, C) one-hot, V
    alpha, beta : weight of the cache, sharpness of its affinities

    All numpy arrays or all Jittor Vars; so is the result, (M, C).
    """
    exp = np.exp if isinstance(affinity, np.ndarray) else type(affinity).exp
    return zero_shot + alpha * (exp(-beta * (1 - affinity)) @ values)


def predict_logits(adapter: Adapter, features: np.ndarray) -> np.ndarray:
    """Logits (M, C) of `features` (M, D), float32."""
    logits = np.empty((len(features), len(adapter.names)), np.float32)
    for rows in _chunks(len(features), len(adapter.keys) + len(adapter.names)):
        f = features[rows]
        logits[rows] = tip_logits(
            f @ adapter.weight.T + adapter.bias, f @ adapter.keys.T, adapter.values, adapter.alpha, adapter.beta
        )
    return logits


class Cache(NamedTuple):
    """What the shots are remembered as."""

    keys: np.ndarray  # (N, D)
    values: np.ndarray  # (N, C) one-hot


def cache(features: np.ndarray, labels: np.ndarray, classes: int) -> Cache:
    """The cache of some shots, features (N, V, D) and labels int (N,): a key is the renormalised mean of a shot's
    views."""
    return Cache(shot_rows(features), one_hot(labels, classes))


# ---- choosing alpha and beta ----


def count_right(
    features, labels, text, scale, keys, values, alphas: Sequence[float], betas: Sequence[float]
) -> np.ndarray:
    """How many rows each beta and alpha classify rightly: int64 (len(betas), len(alphas)); alphas ascend.

    features (M, D), labels (M,), text (C, D), scale, keys (N, D) and values as for `tip_logits`. Of classes with equal
    logits the lowest label wins.

    No alpha is tried: where class c is ahead of the true class by `gap` in zero-shot logits and the true class ahead by
    `lead` in the cache, the true class wins over c where alpha·lead > gap, so each row wins in one interval of alpha.
    """
    classes, order, shares = _by_place(values)
    keys = keys[order]
    place = np.argsort(classes)  # of each class in `classes`

    def steps(rows: slice) -> np.ndarray:
        """How the count of these rows changes from one alpha to the next, (len(betas), len(alphas) + 1)."""
        of_row = features[rows].T
        true = labels[rows], np.arange(of_row.shape[1])  # the true class of each row, in arrays (C, rows)
        wins = _Intervals(_gap(scale * (text @ of_row), true)[classes], np.asarray(alphas, features.dtype))
        true_place = place[true[0]], true[1]  # the same in arrays whose classes come as `classes`
        distance = 1 - keys @ of_row
        affinity, cached = np.empty_like(distance), np.zeros((len(text), of_row.shape[1]), distance.dtype)
        change = np.zeros((len(betas), len(alphas) + 1), np.int64)
        for step, beta in zip(change, betas):
            with np.errstate(over="ignore", invalid="ignore"):  # long fine-tuned keys and a large beta
                np.exp(np.multiply(distance, -beta, out=affinity), out=affinity)
                cached[:] = 0
                for start, stop in shares:
                    cached[: stop - start] += affinity[start:stop]
                first, behind = wins.where(cached[true_place] - cached)
            step += np.bincount(first, minlength=len(step)) - np.bincount(behind, minlength=len(step))
        return change

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of Python's lock while it computes
        changes = pool.map(steps, _chunks(len(features), len(keys) + len(text)))
        return sum(changes, np.zeros((len(betas), len(alphas) + 1), np.int64))[:, :-1].cumsum(axis=1)


def _by_place(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Orders in which to add up affinities by class with slices alone: of the classes, and of the keys.

    Classes come by falling number of keys; keys by their place in their class, then as the classes. So each share
    (start, stop) of the keys, one for each place, belongs to the first classes.
    """
    labels = values.argmax(axis=1)
    counts = np.bincount(labels, minlength=values.shape[1])
    classes = np.argsort(-counts, kind="stable")
    places = place_in_class(labels)
    order = np.lexsort((np.argsort(classes)[labels], places))
    ends = np.bincount(places).cumsum().tolist()
    return classes, order, list(zip([0, *ends], ends))


def _gap(zero_shot: np.ndarray, true) -> np.ndarray:
    """How far each class is ahead of the row's true class in zero-shot logits, both (C, rows); never 0.

    A tie is decided as argmax does by a few units in the last place: a class of a lower label is put ahead, one of a
    higher behind. The true class itself is put behind, so that it never stands in its own way.
    """
    gap = zero_shot - zero_shot[true]
    lower = np.sign(true[0] - np.arange(len(gap))[:, None]).astype(gap.dtype)
    gap += lower * (4 * np.spacing(np.abs(gap)) + gap.dtype.type(1e-20))
    gap[true] = -1
    return gap


class _Intervals:
    """The alphas with which each row's true class wins: alpha·lead > gap over each class, whose gap (C, rows) is given.

    Divided by alpha·gap: 1/alpha is below lead/gap of all classes that are ahead, and above that of all that are
    behind.
    """

    def __init__(self, gap: np.ndarray, alphas: np.ndarray):
        inverse, ahead = 1 / gap, gap > 0
        self.ahead, self.behind = np.where(ahead, inverse, 0), np.where(ahead, 0, inverse)
        self.not_ahead = np.where(ahead, 0, np.inf).astype(gap.dtype)
        with np.errstate(divide="ignore"):
            self.alphas = -1 / alphas  # ascending, as the alphas

    def where(self, lead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row the index of the first alpha, and of the first behind the last; none where affinities
        overflow."""
        below = (lead * self.ahead + self.not_ahead).min(axis=0)
        above = (lead * self.behind).max(axis=0)
        first = np.searchsorted(self.alphas, -below, "left")  # behind all where it is NaN
        return first, np.maximum(first, np.searchsorted(self.alphas, -above, "right"))


def _chunks(rows: int, width: int, numbers: int = CHUNK) -> Iterator[slice]:
    size = max(1, numbers // max(1, width))
    return (slice(start, start + size) for start in range(0, rows, size))


# ---- choosing on the trials' rows ----


def search(text: Text, support: Support, judged: Sequence[Trial], caches: Iterable[Cache]) -> dict:
    """The best alpha and beta of the grid for the trials' caches, with top-1 on their rows, and zero-shot's.

    Best is the pair that classifies most rows rightly. Where classes have no shots, though, no row shows how those with
    shots swallow them; then the shots of one part of the classes after the other are hidden, and only pairs count with
    which the rows of hidden classes keep KEPT of their zero-shot accuracy. Of equally good pairs the one of the
    smallest beta, then alpha, as in the authors' loop.
    """
    alphas = [0, *ALPHAS]  # 0 is zero-shot
    right, base, new, parts = 0, _Tally(), _Tally(), _to_hide(text, support)
    for trial, cached in zip(judged, caches):
        right = right + _count(text, trial.features, trial.labels, cached, alphas, BETAS)
        for hidden in parts:
            kept, is_new = ~cached.values[:, hidden].any(axis=1), np.isin(trial.labels, hidden)
            for tally, rows in ((base, ~is_new), (new, is_new)):
                tally.add(
                    _count(
                        text,
                        trial.features[rows],
                        trial.labels[rows],
                        Cache(cached.keys[kept], cached.values[kept]),
                        alphas,
                        BETAS,
                    ),
                    rows.sum(),
                )
    rows = sum(len(trial.labels) for trial in judged)
    zero_shot, right, hidden_top1 = float(right[0, 0] / rows), right[:, 1:] / rows, new.mean()
    allowed = hidden_top1[:, 1:] >= KEPT * hidden_top1[0, 0] if new.rows else np.ones(right.shape, bool)
    merit = (
        np.where(allowed, right, -1) if allowed.any() else right
    )  # no pair keeps it where zero-shot knows next to nothing
    beta, alpha = np.unravel_index(merit.argmax(), merit.shape)
    hiding = (
        {"base_top1": float(base.mean()[beta, 1 + alpha]), "new_top1": float(hidden_top1[beta, 1 + alpha])}
        if new.rows
        else {}
    )
    return {
        "alpha": float(ALPHAS[alpha]),
        "beta": float(BETAS[beta]),
        "rows": rows,
        "top1": float(right[beta, alpha]),
        "zero_shot_top1": zero_shot,
        **hiding,
    }


def _to_hide(text: Text, support: Support) -> list[np.ndarray]:
    """Classes to hide together, part by part, so that they are missing as those without shots are; none where none are.

    Where those are of groups that have shots, too, each part is every fourth class. Where they are groups of their own,
    as the contest's cars are, each part is a group.
    """
    groups, known = np.array(groups_of(text)), has_shots(support.labels, len(text.names))
    with_shots = np.flatnonzero(known)
    if known.all():
        return []
    if set(groups[known]) & set(groups[~known]):
        return [with_shots[part::HIDDEN] for part in range(min(HIDDEN, len(with_shots)))]
    parts = [with_shots[groups[with_shots] == group] for group in dict.fromkeys(groups[with_shots])]
    return parts if len(parts) > 1 else []


class _Tally:
    """Rows classified rightly of those seen, for every pair of the grid."""

    def __init__(self):
        self.right, self.rows = 0, 0

    def add(self, right: np.ndarray, rows: int) -> None:
        self.right, self.rows = self.right + right, self.rows + int(rows)

    def mean(self) -> np.ndarray:
        return self.right / max(1, self.rows)


def _count(text: Text, features, labels, cached: Cache, alphas, betas) -> np.ndarray:
    return count_right(features, labels, text.features, text.scale, *cached, alphas, betas)


def _cache_of(text: Text, support: Support) -> Cache:
    return cache(support.features, support.labels, len(text.names))


# ---- fine-tuning ----


class Epoch(NamedTuple):
    """What an epoch of fine-tuning leaves."""

    keys: object  # Var float32 (N, D), on the device; .numpy() fetches them
    right: int  # of the validation rows, those classified rightly


def fine_tune(
    features,
    labels,
    text,
    scale,
    keys,
    values,
    alpha,
    beta,
    *,
    epochs: int,
    lr: float,
    seed: int,
    device: str,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[Epoch]:
    """Fine-tune the keys of a cache by cross-entropy over `tip_logits`; yields an Epoch after each.

    features (R, D) and labels (R,) are the rows to learn from, all views of the shots; text (C, D), scale, keys (N, D)
    and the rest as for `tip_logits`, device as for `jclip.runtime.use`; validation has features (M, D) and labels (M,).
    The keys are a linear layer's weight and are not renormalised. All stays on the device. Raises ClipError where the
    device cannot be used, TaskError where the keys become NaN or infinite.
    """
    from jclip import runtime

    runtime.use(device)
    jt = runtime.jittor()
    from methods.cache_logits import CacheLogits, cross_entropy

    def on_device(features, labels):
        """Rows, their zero-shot logits and their labels."""
        return [jt.array(x).stop_grad() for x in (features, scale * (features @ text.T), labels.astype(np.int32))]

    rows, zero_shot, targets = on_device(features, labels)
    judged = on_device(*validation) if validation else None
    logits, tuned = CacheLogits(values.argmax(axis=1), len(text), float(alpha), float(beta)), jt.array(keys)
    optimizer = jt.optim.AdamW([tuned], lr, eps=1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    rng = np.random.default_rng(seed)
    batches = -(-len(features) // BATCH_SIZE)
    for epoch in range(epochs):
        order = jt.array(rng.permutation(len(features)).astype(np.int32))  # at once: each array waits for the device
        for i in range(batches):
            optimizer.lr = lr * (1 + np.cos(np.pi * (epoch * batches + i) / (epochs * batches))) / 2
            batch = order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]
            affinity = jt.nn.matmul_transpose(rows[batch], tuned)
            optimizer.step(cross_entropy(logits(affinity, zero_shot[batch]), targets[batch]))
        if not np.isfinite(tuned.sqr().sum().item()):
            raise TaskError(f"fine-tuning diverged in epoch {epoch + 1}; choose an --lr below {lr:g}")
        yield Epoch(tuned.clone().stop_grad(), _right(jt, logits, tuned, *judged) if validation else 0)


def _right(jt, logits, keys, rows, zero_shot, targets) -> int:
    """How many rows have their highest logit at their label; of equal ones the lowest label wins."""
    right = 0
    with jt.no_grad():
        for some in _chunks(len(rows), len(keys) + zero_shot.shape[1], DEVICE_CHUNK):
            found = logits(jt.nn.matmul_transpose(rows[some], keys), zero_shot[some])
            labels = targets[some]
            of_label = found.reindex(labels.shape, ["i0", "@e0(i0)"], extras=[labels]).broadcast(found.shape, [1])
            ahead = (found > of_label) | (
                (found == of_label) & (jt.index(found.shape, 1) < labels.broadcast(found.shape, [1]))
            )
            right += int((ahead.float32().sum(1) == 0).float32().sum().item())
    return right


def _tune(text: Text, support: Support, settings: Settings, what: str, trial: Trial | None = None) -> Iterator[Epoch]:
    """Fine-tune the cache of the shots on all their views; a trial's rows validate."""
    rows, labels = all_views(support)
    run = fine_tune(
        rows,
        labels,
        text.features,
        text.scale,
        *_cache_of(text, support),
        TRAIN_ALPHA,
        TRAIN_BETA,
        epochs=settings.epochs,
        lr=settings.lr,
        seed=settings.seed,
        device=settings.device,
        validation=trial and (trial.features, trial.labels),
    )
    yield from tqdm(run, desc=what, total=settings.epochs, unit=" epoch", disable=None)


def _tuned(text: Text, support: Support, settings: Settings, epoch: int) -> Cache:
    """The cache after `epoch`, of the schedule for all epochs."""
    return _with_keys(
        text, support, next(islice(_tune(text, support, settings, f"{epoch} epochs again"), epoch - 1, None))
    )


def _with_keys(text: Text, support: Support, epoch: Epoch) -> Cache:
    return Cache(epoch.keys.numpy(), one_hot(support.labels, len(text.names)))


def _best_epoch(text: Text, support: Support, judged: Sequence[Trial], settings: Settings) -> tuple[int, list[Cache]]:
    """The epoch, from 1, whose keys classify most of the trials' rows rightly at the alpha and beta of training; its
    caches.

    A single trial's best keys are kept while it runs; those of several are trained again, so that memory stays flat.
    """
    right = np.zeros(settings.epochs, np.int64)
    for number, trial in enumerate(judged, 1):
        shots = some_of(support, trial.shots)
        for epoch, tuned in enumerate(_tune(text, shots, settings, f"trial {number} of {len(judged)}", trial)):
            right[epoch] += tuned.right
            if right.argmax() == epoch:
                best = tuned
    epoch = int(right.argmax()) + 1
    return epoch, [_with_keys(text, shots, best)] if len(judged) == 1 else [
        _tuned(text, some_of(support, trial.shots), settings, epoch) for trial in judged
    ]


# ---- the methods ----


def zero_shot(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """The classes' texts alone (Radford et al. 2021, arXiv:2103.00020): an empty cache."""
    return _adapter("zero-shot", text, _cache_of(text, some_of(support, slice(0))), 0.0, 0.0), {
        "how": "nothing to choose"
    }


def tip(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """Tip-Adapter, which trains nothing: the cache as it is, alpha and beta chosen."""
    judged, how = trials(support, val)
    chosen = {"how": how, "alpha": DEFAULT_ALPHA, "beta": DEFAULT_BETA}
    if judged:
        chosen.update(
            search(text, support, judged, (_cache_of(text, some_of(support, trial.shots)) for trial in judged))
        )
    return _adapter("tip", text, _cache_of(text, support), chosen["alpha"], chosen["beta"]), chosen


def tip_f(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """Tip-Adapter-F: keys fine-tuned up to the best epoch, then alpha and beta chosen for them."""
    tried = trials(support, val)
    chosen, caches = {"how": tried.how, "alpha": TRAIN_ALPHA, "beta": TRAIN_BETA, "epoch": settings.epochs}, []
    if tried.judged:
        chosen["epoch"], caches = _best_epoch(text, support, tried.judged, settings)
        chosen.update(search(text, support, tried.judged, caches))
    tuned = caches[0] if tried.of_all_shots else _tuned(text, support, settings, chosen["epoch"])
    return _adapter("tip-f", text, tuned, chosen["alpha"], chosen["beta"]), chosen


def _adapter(method: str, text: Text, cached: Cache, alpha: float, beta: float) -> Adapter:
    return Adapter(method, text.names, text.features, text.scale, *cached, alpha, beta)


# Each takes (text, support, val or None, settings) and returns the adapter and what was chosen: "how" in words, and
# figures.
METHODS = {
    "blend": blend,
    "zero-shot": zero_shot,
    "tip": tip,
    "tip-f": tip_f,
    "gda": published.gda,
    "taskres": published.taskres,
    "clap": published.clap,
    "proker": published.proker,
}


def train(method: str, text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """The adapter that a method of METHODS makes, and what it chose; raises TaskError where it needs shots and has
    none."""
    if not len(support.labels) and method != "zero-shot":
        raise TaskError(
            f"there are no shots for {method} to learn from; give some to extract_feature.py, "
            "or choose --method zero-shot, which needs none"
        )
    return METHODS[method](text, support, val, settings)
