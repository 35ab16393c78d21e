"""The default method: a blend of linear experts, whose weights make the judging rows likeliest.

Experts: the zero-shot classifier; text-anchored regressions of several strengths (regression.py); Gaussian discriminants whose
class means are shrunk towards what the classes' texts lead to expect (gaussian.py). Each is a matrix and a bias, so the blend
is one matrix and one bias, and its probabilities are calibrated. docs/accuracy.md has what it reaches, docs/log.md what was tried.
"""
from __future__ import annotations

from itertools import cycle
from typing import NamedTuple, Optional, Sequence

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text

from . import gaussian
from .regression import STRENGTHS, cross_entropy, regressions
from .task import Linear, Settings, Trial, all_views, linear_adapter, shot_rows, trials, zero_shot_classifier

# (strength of the ridge regression from texts to means, pseudo-shots that an expected mean counts for)
GAUSSIANS = ((0.1, 4), (0.1, 16), (1, 4), (1, 16))
EXPERTS = ("zero-shot", *(f"regression {strength:g}" for strength in STRENGTHS), *(f"gaussian {ridge:g}, {shots}" for ridge, shots in GAUSSIANS))
SHARPER = 1.5  # than zero-shot: what the regressions start from. 1.5 to 2 was best on held-out rows; docs/log.md
ANCHORED = 1 + len(STRENGTHS)  # the experts that leave a class without shots at its text
# Where nothing can be chosen, one shot a class and no validation rows: about what cars and scenes chose there.
DEFAULT_WEIGHTS = dict(zip(EXPERTS, (0.3, 0.6, 0, 0, 0, 0.004, 0, 0.02, 0)))
FOLDS = 4  # of the shots, where there are no validation rows; and parts of the classes that are hidden in turn
JUDGED = 2**26  # numbers in the experts' logits of the rows that choose their weights: 0.3 GB
PRIOR = 0.01  # of the weights, as a variance of 100 on experts scaled to logits of mean size 1
KNOWN = 0.99  # a class is of a known kind if its text is no further out than this share of the known classes' own
TAKEN, WARY = 0.001, 0.9  # so few judging rows may be lost to classes of another kind, whose offset is this much of what does so
FARTHEST, OFFSET_STEP = 60.0, 0.1  # offsets are tried up to this, so finely


class Experts(NamedTuple):
    """All experts of some shots."""

    classifiers: list[Linear]  # as EXPERTS, over all C classes
    known: np.ndarray  # bool (C,): has shots
    alike: np.ndarray  # bool (C,): has none, but is of the same kind as classes that have

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(experts, M, C) of features (M, D)."""
        return np.stack([features @ one.weight.T + one.bias for one in self.classifiers])


class Choice(NamedTuple):
    """What a blend is made with."""

    weights: np.ndarray  # (experts,)
    alike: float  # added to the logits of classes without shots, of the kind of the others
    strange: float  # the same, of another kind
    judged: dict = {}  # figures on the judging rows


def blend(text: Text, support: Support, val: Optional[Split], settings: Settings) -> tuple[Adapter, dict]:
    """Weights, and offsets of classes without shots, chosen on judging rows; then the experts of all shots, blended."""
    judged, how = trials(support, val, FOLDS)
    everything = learn(text, support)
    choice = choose(text, support, judged, everything if how.startswith("on ") else None, settings.seed) if judged else unjudged(everything.known)
    if settings.refit and val is not None:
        everything = learn(text, with_rows(support, val))
    chosen = {"how": how, **choice.judged, "weights": {name: float(weight) for name, weight in zip(EXPERTS, choice.weights)}}
    if not everything.known.all():
        chosen.update(classes_without_shots=int((~everything.known).sum()), alike=int(everything.alike.sum()),
                      offset_alike=choice.alike, offset_strange=choice.strange)
    return linear_adapter("blend", text, blended(everything, choice)), chosen


def learn(text: Text, support: Support, shots=slice(None)) -> Experts:
    """The experts that some of the shots make.

    Only classes that have shots compete in the learning. A class without, but of a known kind, is given the mean, and the step
    away from its text, that its text leads to expect. One of another kind keeps its text, and the Gaussians have nothing to say of it.
    """
    part = Support(support.features[shots], support.labels[shots], support.names[shots])
    known = np.isin(np.arange(len(text.names)), part.labels)
    base, place = np.flatnonzero(known), np.cumsum(known) - 1
    rows, labels = shot_rows(part.features), place[part.labels]
    means, counts = gaussian.class_means(rows, labels, len(base))
    maps = {ridge: gaussian.TextMap(text.features[known], means, ridge) for ridge, _ in GAUSSIANS}
    alike = ~known & _of_known_kind(maps[1], text.features, known)
    noise = gaussian.within_class(rows, labels, means, counts, maps[1](text.features[known]))
    classifiers = [zero_shot_classifier(text), *_regressions(text, part, place, known, alike, noise)]
    for ridge, pseudo in GAUSSIANS:
        expected = maps[ridge](text.features)
        covariance = gaussian.within_class(rows, labels, means, counts, expected[known])
        expected[known] = (counts[:, None] * means + pseudo * expected[known]) / (counts[:, None] + pseudo)
        classifiers.append(_without(~(known | alike), gaussian.discriminant(expected, covariance)))
    return Experts(classifiers, known, alike)


def _regressions(text: Text, part: Support, place: np.ndarray, known: np.ndarray, alike: np.ndarray, noise: np.ndarray) -> list[Linear]:
    """A text-anchored regression of each strength, among the known classes; the others follow their texts as far as they are alike."""
    start, bias = zero_shot_classifier(text)
    start = np.float32(SHARPER) * start
    views, labels = all_views(part)
    learned = []
    for weight in regressions(views, place[labels], start[known], noise):
        whole = start.copy()
        whole[alike] += gaussian.TextMap(text.features[known], weight - start[known], GAUSSIANS[0][0])(text.features[alike])
        whole[known] = weight
        learned.append(Linear(whole, bias))
    return learned


def _of_known_kind(texts: gaussian.TextMap, text: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which classes' texts (C, D) are no stranger to a map than most of those that it was made from; bool (C,)."""
    return texts.novelty(text) <= np.quantile(texts.own_novelty(text[known]), KNOWN)


def _without(classes: np.ndarray, classifier: Linear) -> Linear:
    """The classifier, with nothing to say of some classes."""
    return Linear(np.where(classes[:, None], 0, classifier.weight).astype(np.float32), np.where(classes, 0, classifier.bias).astype(np.float32))


def blended(experts: Experts, choice: Choice) -> Linear:
    """The experts' classifiers as one."""
    weight = sum(share * one.weight for share, one in zip(choice.weights, experts.classifiers))
    bias = sum(share * one.bias for share, one in zip(choice.weights, experts.classifiers))
    offsets = np.where(experts.known, 0, np.where(experts.alike, choice.alike, choice.strange))
    return Linear(weight.astype(np.float32), (bias + offsets).astype(np.float32))


def with_rows(support: Support, val: Split) -> Support:
    """The support set with labelled validation rows as further shots; each counts for all the views that a shot has."""
    known = val.labels >= 0
    views = np.repeat(val.features[known][:, None], support.features.shape[1], axis=1)
    return Support(np.concatenate([support.features, views]), np.concatenate([support.labels, val.labels[known]]),
                   np.concatenate([support.names, val.names[known]]))


# ---- choosing ----


def unjudged(known: np.ndarray) -> Choice:
    """What is taken where nothing can be judged. The Gaussians' logits have a level of their own, so they are left out where classes without shots need an offset."""
    weights = np.array(list(DEFAULT_WEIGHTS.values()))
    if not known.all():
        weights[ANCHORED:] = 0
    return Choice(weights, 0.0, 0.0)


def choose(text: Text, support: Support, judged: Sequence[Trial], everything: Optional[Experts], seed: int) -> Choice:
    """The weights and offsets that the trials' rows ask for; `everything` are the experts of all shots, if these are what is judged."""
    judged = [_fewer(trial, len(text.names), len(judged), seed) for trial in judged]
    taught = np.unique(support.labels)
    if len(taught) == 1 or not any(np.isin(trial.labels, taught).any() for trial in judged):
        return unjudged(np.isin(np.arange(len(text.names)), support.labels))
    learned = [everything if everything is not None else learn(text, support, trial.shots) for trial in judged]
    weights, figures = _weights(learned, judged)
    if learned[0].known.all():
        return Choice(weights, 0.0, 0.0, figures)
    alike, strange = _offsets(text, support, judged, weights)
    return Choice(weights, alike, min(strange, _bearable(learned, judged, weights)), figures)


def _fewer(trial: Trial, classes: int, trials: int, seed: int) -> Trial:
    """The trial with no more rows than memory has room for, drawn with the seed."""
    most = max(1, JUDGED // (len(EXPERTS) * classes * trials))
    if len(trial.labels) <= most:
        return trial
    kept = np.sort(np.random.default_rng(seed).choice(len(trial.labels), most, replace=False))
    return Trial(trial.shots, trial.features[kept], trial.labels[kept])


def _weights(learned: Sequence[Experts], judged: Sequence[Trial]) -> tuple[np.ndarray, dict]:
    """Weights for the rows of classes that have shots, among those classes: the same ones in all trials, none of which loses a class.

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
    """Weights (experts,) of at least 0 that minimise the mean cross-entropy of the weighted sum of logits (experts, M, C): convex.

    PRIOR holds them back, as far as few rows leave them free: where all rows are classified rightly, there is no best weight.
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
    return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(logits), options={"maxiter": 200}).x / size


def _offsets(text: Text, support: Support, judged: Sequence[Trial], weights: np.ndarray) -> tuple[float, float]:
    """Offsets for classes without shots, of a known kind and of another, found by hiding the shots of a quarter of the classes in turn."""
    present = np.unique(support.labels)
    # between 1, for the harmonic mean of both accuracies, and the ratio of the classes, for accuracy over all: the former is flat in between
    share = (len(text.names) / len(present) - 1) ** 0.5
    seen: tuple[list, list] = ([], [])  # (lead, worth) of each part, with the Gaussians and without
    for part, trial in zip(range(FOLDS), cycle(judged)):
        hidden = present[part::FOLDS]
        if not len(hidden) or len(hidden) == len(present):
            continue
        experts = learn(text, support, trial.shots & ~np.isin(support.labels, hidden))
        logits = experts.logits(trial.features)
        base = np.tensordot(weights, logits, 1)[:, experts.known]
        for several, found in zip((len(EXPERTS), ANCHORED), seen):
            new = np.tensordot(weights[:several], logits[:several], 1)[:, hidden]
            found.append(_worth(base, np.flatnonzero(experts.known), new, hidden, trial.labels, share))
    return tuple(_best_offset(*map(np.concatenate, zip(*found))) if found else 0.0 for found in seen)


def _worth(base: np.ndarray, base_classes: np.ndarray, new: np.ndarray, new_classes: np.ndarray, labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
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

    offsets = np.arange(-FARTHEST, FARTHEST, OFFSET_STEP)
    return float(offsets[np.argmax([worth @ expit(offset - lead) for offset in offsets])])


def _bearable(learned: Sequence[Experts], judged: Sequence[Trial], weights: np.ndarray) -> float:
    """An offset at which classes of another kind take no more than TAKEN of the judging rows from the classes that these belong to."""
    lead = [np.zeros(0)]
    for experts, trial in zip(learned, judged):
        strange = ~(experts.known | experts.alike)
        if strange.any():
            logits = np.tensordot(weights, experts.logits(trial.features), 1)
            best = np.where(experts.known, logits, -np.inf)
            right = best.argmax(axis=1) == trial.labels
            lead.append(best[right].max(axis=1) - logits[right][:, strange].max(axis=1))
    lead = np.concatenate(lead)
    return WARY * float(np.quantile(lead, TAKEN)) if len(lead) else FARTHEST
