"""The default method: a blend of linear experts, whose weights make the judging rows likeliest.

Experts: the zero-shot classifier; text-anchored regressions of several strengths (regression.py); Gaussian
discriminants whose class means are shrunk towards what the classes' texts lead to expect (gaussian.py). Each is a
matrix and a bias, so the blend is one matrix and one bias, and its probabilities are calibrated. docs/accuracy.md has
what it reaches, docs/log.md what was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text

from . import gaussian
from .regression import STRENGTHS, cross_entropy, regressions
from .task import (
    Linear,
    Settings,
    Trial,
    Trials,
    all_views,
    has_shots,
    linear_adapter,
    shot_rows,
    some_of,
    trials,
    zero_shot_classifier,
)

# (strength of the ridge regression from texts to means, pseudo-shots that an expected mean counts for)
GAUSSIANS = ((0.1, 4), (0.1, 16), (1, 4), (1, 16))
EXPERTS = (
    "zero-shot",
    *(f"regression {strength:g}" for strength in STRENGTHS),
    *(f"gaussian {ridge:g}, {shots}" for ridge, shots in GAUSSIANS),
)
N_ANCHORED = 1 + len(
    STRENGTHS
)  # of the experts, the first: those that have something to say of classes of another kind
# times zero-shot's classifier: what the regressions start from. 1.5 to 2 was best on held-out rows; docs/log.md
ANCHOR_SCALE = 1.5
STEP_RIDGE = 0.1  # strength of the ridge regression from texts to the regressions' steps away from them
KIND_RIDGE = 1  # strength of the one, from texts to means, that says of what kind a class is and how noisy shots are
KIND_QUANTILE = (
    0.99  # a class is of a known kind if its text is no further out than this share of the known classes' own
)
# Where nothing can be chosen, one shot a class and no validation rows: about what cars and scenes chose there.
DEFAULT_WEIGHTS = dict(zip(EXPERTS, (0.3, 0.6, 0, 0, 0, 0.004, 0, 0.02, 0)))
FOLDS = 4  # of the shots, where there are no validation rows; and parts of the classes that are hidden in turn
MAX_LOGITS = 2**26  # of all experts, for the rows that choose their weights: 0.3 GB
PRIOR = 0.01  # of the weights, as a variance of 100 on experts scaled to logits of mean size 1
MAX_OFFSET, OFFSET_STEP = 60.0, 0.1  # offsets are tried up to this, so finely
MAX_TAKEN = 0.001  # share of judging rows that classes of another kind may take
OFFSET_SAFETY = 0.9  # of the offset at which they take so many


class Experts(NamedTuple):
    """All experts of some shots."""

    classifiers: list[Linear]  # as EXPERTS, over all C classes
    known: np.ndarray  # bool (C,): has shots
    is_alike: np.ndarray  # bool (C,): has none, but is of the same kind as classes that have

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(experts, M, C) of features (M, D)."""
        return np.stack([features @ one.weight.T + one.bias for one in self.classifiers])


class Choice(NamedTuple):
    """What a blend is made with."""

    weights: np.ndarray  # (experts,)
    offset_alike: float  # added to the logits of classes without shots, of the kind of the others
    offset_strange: float  # the same, of another kind
    figures: dict  # of the judging rows; none where nothing was judged


def blend(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """Weights, and offsets of classes without shots, chosen on judging rows; then the experts of all shots, blended."""
    tried = trials(support, val, FOLDS)
    experts = learn(text, support)
    choice = choose(text, support, tried, experts, settings.seed)
    how = (
        tried.how
        if choice.figures or not tried.judged
        else "defaults: no row judges how classes with shots are told apart"
    )
    chosen = {
        "how": how,
        **choice.figures,
        "weights": {name: float(weight) for name, weight in zip(EXPERTS, choice.weights)},
    }
    if not experts.known.all():
        chosen.update(
            classes_without_shots=int((~experts.known).sum()),
            alike=int(experts.is_alike.sum()),
            offset_alike=choice.offset_alike,
            offset_strange=choice.offset_strange,
        )
    return linear_adapter("blend", text, blended(experts, choice)), chosen


def refitted(text: Text, support: Support, val: Split, chosen: dict) -> Adapter:
    """The blend that was `chosen`, of experts that learn from the labelled validation rows as well."""
    choice = Choice(
        np.array(list(chosen["weights"].values())),
        chosen.get("offset_alike", 0.0),
        chosen.get("offset_strange", 0.0),
        {},
    )
    return linear_adapter("blend", text, blended(learn(text, with_rows(support, val)), choice))


def learn(text: Text, support: Support) -> Experts:
    """The experts that shots make.

    Only classes that have shots compete in the learning. A class without, but of a known kind, is given the mean, and
    the step away from its text, that its text leads to expect. One of another kind keeps its text, and the Gaussians
    have nothing to say of it.
    """
    known = has_shots(support.labels, len(text.names))
    place = np.cumsum(known) - 1  # of each known class among them
    rows, labels = shot_rows(support.features), place[support.labels]
    means, counts = gaussian.class_means(rows, labels, known.sum())
    maps = {
        ridge: gaussian.TextMap(text.features[known], ridge)
        for ridge in {KIND_RIDGE, STEP_RIDGE, *(ridge for ridge, _ in GAUSSIANS)}
    }
    is_alike = ~known & _of_known_kind(maps[KIND_RIDGE], text.features, known)
    expected = {ridge: one.expected(means, text.features) for ridge, one in maps.items()}
    covariance = {ridge: gaussian.within_class(rows, labels, means, counts, expected[ridge][known]) for ridge in maps}
    classifiers = [
        zero_shot_classifier(text),
        *_regressions(text, support, known, is_alike, maps[STEP_RIDGE], covariance[KIND_RIDGE]),
    ]
    for ridge, pseudo in GAUSSIANS:
        centres = expected[ridge].copy()
        centres[known] = (counts[:, None] * means + pseudo * centres[known]) / (counts[:, None] + pseudo)
        classifiers.append(_without(~(known | is_alike), gaussian.discriminant(centres, covariance[ridge])))
    return Experts(classifiers, known, is_alike)


def _regressions(
    text: Text, support: Support, known: np.ndarray, is_alike: np.ndarray, texts: gaussian.TextMap, noise: np.ndarray
) -> list[Linear]:
    """A text-anchored regression of each strength, among the known classes; the others follow their texts as far as
    they are alike."""
    start, bias = zero_shot_classifier(text)
    start = np.float32(ANCHOR_SCALE) * start
    views, labels = all_views(support)
    learned = []
    for weight in regressions(views, (np.cumsum(known) - 1)[labels], start[known], noise):
        whole = start.copy()
        if is_alike.any():
            whole[is_alike] += texts.expected(weight - start[known], text.features[is_alike])
        whole[known] = weight
        learned.append(Linear(whole, bias))
    return learned


def _of_known_kind(texts: gaussian.TextMap, text: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which classes' texts (C, D) are no stranger to a map than most of those that it was made from; bool (C,)."""
    return texts.novelty(text) <= np.quantile(texts.own_novelty(text[known]), KIND_QUANTILE)


def _without(classes: np.ndarray, classifier: Linear) -> Linear:
    """The classifier, with nothing to say of some classes."""
    return Linear(
        np.where(classes[:, None], 0, classifier.weight).astype(np.float32),
        np.where(classes, 0, classifier.bias).astype(np.float32),
    )


def blended(experts: Experts, choice: Choice) -> Linear:
    """The experts' classifiers as one."""
    weight = sum(share * one.weight for share, one in zip(choice.weights, experts.classifiers))
    bias = sum(share * one.bias for share, one in zip(choice.weights, experts.classifiers))
    offsets = np.where(experts.known, 0, np.where(experts.is_alike, choice.offset_alike, choice.offset_strange))
    return Linear(weight.astype(np.float32), (bias + offsets).astype(np.float32))


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


def unjudged(known: np.ndarray) -> Choice:
    """What is taken where nothing can be judged. The Gaussians' logits have a level of their own, so they are left out
    where classes without shots need an offset."""
    weights = np.array(list(DEFAULT_WEIGHTS.values()))
    if not known.all():
        weights[N_ANCHORED:] = 0
    return Choice(weights, 0.0, 0.0, {})


def choose(text: Text, support: Support, tried: Trials, experts: Experts, seed: int) -> Choice:
    """The weights and offsets that the trials' rows ask for; `experts` are those of all shots."""
    judged = [_fewer(trial, len(text.names), len(tried.judged), seed) for trial in tried.judged]
    if experts.known.sum() == 1 or not any(experts.known[trial.labels].any() for trial in judged):
        return unjudged(experts.known)
    learned = [experts] if tried.of_all_shots else [learn(text, some_of(support, trial.shots)) for trial in judged]
    weights, figures = _weights(learned, judged)
    if experts.known.all():
        return Choice(weights, 0.0, 0.0, figures)
    alike, strange = _offsets(text, support, judged, weights)
    return Choice(weights, alike, min(strange, _bearable(learned, judged, weights)), figures)


def _fewer(trial: Trial, classes: int, trials: int, seed: int) -> Trial:
    """The trial with no more rows than memory has room for, drawn with the seed."""
    most = max(1, MAX_LOGITS // (len(EXPERTS) * classes * trials))
    if len(trial.labels) <= most:
        return trial
    kept = np.sort(np.random.default_rng(seed).choice(len(trial.labels), most, replace=False))
    return Trial(trial.shots, trial.features[kept], trial.labels[kept])


def _weights(learned: Sequence[Experts], judged: Sequence[Trial]) -> tuple[np.ndarray, dict]:
    """Weights for the rows of classes that have shots, among those classes: the same ones in all trials, none of which
    loses a class.

    Also figures of these rows: how many there are, top-1 of the blend and of zero-shot.
    """
    known = learned[0].known
    place, logits, labels = np.cumsum(known) - 1, [], []
    for experts, trial in zip(learned, judged):
        rows = known[trial.labels]
        logits.append(experts.logits(trial.features[rows])[:, :, known])
        labels.append(place[trial.labels[rows]])
    logits, labels = np.concatenate(logits, axis=1), np.concatenate(labels)
    weights = stacked(logits, labels)
    right = [float((z.argmax(axis=1) == labels).mean()) for z in (np.tensordot(weights, logits, 1), logits[0])]
    return weights, {"rows": len(labels), "top1": right[0], "zero_shot_top1": right[1]}


def stacked(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights (experts,) of at least 0 that minimise the mean cross-entropy of the weighted sum of logits (experts, M,
    C): convex.

    PRIOR holds them back, as far as few rows leave them free: where all rows are classified rightly, there is no best
    weight.
    """
    from scipy.optimize import minimize

    size = np.abs(logits - logits.mean(axis=2, keepdims=True)).mean(axis=(1, 2)) + 1e-12
    rows = np.arange(len(labels))

    def objective(weights):  # of experts scaled to one size, so that the steps are of one size, too
        value, chances = cross_entropy(np.tensordot((weights / size).astype(np.float32), logits, 1), labels)
        chances[rows, labels] -= 1
        slope = np.array([np.einsum("mc,mc->", chances, one) for one in logits], np.float64) / size
        return value + PRIOR / 2 * weights @ weights / len(labels), (slope + PRIOR * weights) / len(labels)

    start = np.full(len(logits), 1 / len(logits))
    return (
        minimize(
            objective, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(logits), options={"maxiter": 200}
        ).x
        / size
    )


def _offsets(text: Text, support: Support, judged: Sequence[Trial], weights: np.ndarray) -> tuple[float, float]:
    """Offsets for classes without shots, of a known kind and of another, found by hiding the shots of a quarter of the
    classes in turn."""
    present = np.unique(support.labels)
    # between 1, for the harmonic mean of both accuracies, and the ratio of the classes, for accuracy over all: the
    # former is flat in between
    share = (len(text.names) / len(present) - 1) ** 0.5
    seen: tuple[list, list] = ([], [])  # (lead, worth) of each part, with the Gaussians and without
    for part, trial in zip(range(FOLDS), cycle(judged)):
        hidden = present[part::FOLDS]
        if not len(hidden) or len(hidden) == len(present):
            continue
        experts = learn(text, some_of(support, trial.shots & ~np.isin(support.labels, hidden)))
        logits = experts.logits(trial.features)
        base = np.tensordot(weights, logits, 1)[:, experts.known]
        for several, found in zip((len(EXPERTS), N_ANCHORED), seen):
            new = np.tensordot(weights[:several], logits[:several], 1)[:, hidden]
            found.append(_worth(base, np.flatnonzero(experts.known), new, hidden, trial.labels, share))
    return tuple(_best_offset(*map(np.concatenate, zip(*found))) if found else 0.0 for found in seen)


def _worth(
    base: np.ndarray,
    base_classes: np.ndarray,
    new: np.ndarray,
    new_classes: np.ndarray,
    labels: np.ndarray,
    share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row by how much the base classes lead, and what it is worth to call it new, (M,) both.

    Right calls of all base rows are worth 1 in sum, those of all new rows `share`.
    """
    is_new = np.isin(labels, new_classes)
    gain = share * (new_classes[new.argmax(axis=1)] == labels) / max(1, is_new.sum())
    loss = (base_classes[base.argmax(axis=1)] == labels) / max(1, (~is_new).sum())
    return base.max(axis=1) - new.max(axis=1), gain - loss


def _best_offset(lead: np.ndarray, worth: np.ndarray) -> float:
    """The offset with the highest worth, when a row is called new with the probability that its logits say."""
    from scipy.special import expit

    offsets = np.arange(-MAX_OFFSET, MAX_OFFSET, OFFSET_STEP)
    return float(offsets[np.argmax([worth @ expit(offset - lead) for offset in offsets])])


def _bearable(learned: Sequence[Experts], judged: Sequence[Trial], weights: np.ndarray) -> float:
    """An offset at which classes of another kind take no more than MAX_TAKEN of the judging rows from the classes that
    these belong to."""
    lead = [np.zeros(0)]
    for experts, trial in zip(learned, judged):
        strange = ~(experts.known | experts.is_alike)
        if strange.any():
            logits = np.tensordot(weights, experts.logits(trial.features), 1)
            best = np.where(experts.known, logits, -np.inf)
            right = best.argmax(axis=1) == trial.labels
            lead.append(best[right].max(axis=1) - logits[right][:, strange].max(axis=1))
    lead = np.concatenate(lead)
    return OFFSET_SAFETY * float(np.quantile(lead, MAX_TAKEN)) if len(lead) else MAX_OFFSET
