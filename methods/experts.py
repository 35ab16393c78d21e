"""The experts that a blend is made of: linear classifiers of all classes, learned from the shots and the texts.

They are the zero-shot classifier; text-anchored regressions of several strengths (regression.py); Gaussian
discriminants whose class means are shrunk towards those predicted from the classes' texts (gaussian.py).

A base class has shots, a new class has none. A new class is near if its text is like those of the base classes, so that
what was learned of them holds for it; else it is far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.rows import all_views, base_classes, shot_rows

from .gaussian import TextMap, class_means, discriminant, within_class
from .linear import Linear, zero_shot_classifier
from .regression import STRENGTHS, regressions

# (strength of the ridge regression from texts to means, number of shots that a predicted mean counts for)
GAUSSIANS = ((0.1, 4), (0.1, 16), (1, 4), (1, 16))
EXPERTS = (
    "zero-shot",
    *(f"regression {strength:g}" for strength in STRENGTHS),
    *(f"gaussian {ridge:g}, {shots}" for ridge, shots in GAUSSIANS),
)
N_ANCHORED = 1 + len(STRENGTHS)  # the first experts, which start from the texts; only these know far classes
# The regressions start from the zero-shot classifier times this. 1.5 to 2 was best on held-out rows; docs/log.md
ANCHOR_SCALE = 1.5
# Strengths of ridge regressions from texts: to the regressions' steps away from them; to class means, where these tell
# near from far classes and how noisy shots are.
STEP_RIDGE, NOVELTY_RIDGE = 0.1, 1
NEAR_QUANTILE = 0.99  # a class is near if its text is no more novel than this share of the base classes' own


class Experts(NamedTuple):
    """All experts of some shots."""

    classifiers: list[Linear]  # in the order of EXPERTS, each of all C classes
    is_base: np.ndarray  # bool (C,)
    is_near: np.ndarray  # bool (C,), new and near

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(experts, M, C) of features (M, D)."""
        return np.stack([classifier.logits(features) for classifier in self.classifiers])


def learn_experts(text: Text, support: Support) -> Experts:
    """Learn every expert from all shots of a support set.

    Only base classes compete in the learning. A near class gets what its text predicts: the mean, and the regressions'
    step away from the text. A far class keeps its text, and a logit of 0 from the Gaussians.
    """
    is_base = base_classes(support.labels, len(text.names))
    base_text, base_index = text.features[is_base], np.cumsum(is_base) - 1
    rows, labels = shot_rows(support.features), base_index[support.labels]
    means, counts = class_means(rows, labels, is_base.sum())
    ridges = {NOVELTY_RIDGE, STEP_RIDGE, *(ridge for ridge, _ in GAUSSIANS)}
    maps = {ridge: TextMap(base_text, ridge) for ridge in ridges}
    expected = {ridge: maps[ridge].expected(means, text.features) for ridge in ridges}
    noise = {ridge: within_class(rows, labels, means, counts, expected[ridge][is_base]) for ridge in ridges}
    is_near = ~is_base & _is_near(maps[NOVELTY_RIDGE], text.features, base_text)
    classifiers = [
        zero_shot_classifier(text),
        *_regressions(text, support, is_base, is_near, maps[STEP_RIDGE], noise[NOVELTY_RIDGE]),
    ]
    for ridge, pseudo_shots in GAUSSIANS:
        centres = expected[ridge].copy()
        total = counts[:, None] + pseudo_shots
        centres[is_base] = (counts[:, None] * means + pseudo_shots * centres[is_base]) / total
        classifiers.append(_zeroed(discriminant(centres, noise[ridge]), ~(is_base | is_near)))
    return Experts(classifiers, is_base, is_near)


def _is_near(texts: TextMap, text: np.ndarray, base_text: np.ndarray) -> np.ndarray:
    """Which texts (C, D) are no more novel to a map than nearly all texts (n, D) it was made from; bool (C,)."""
    return texts.novelty(text) <= np.quantile(texts.own_novelty(base_text), NEAR_QUANTILE)


def _regressions(
    text: Text, support: Support, is_base: np.ndarray, is_near: np.ndarray, texts: TextMap, noise: np.ndarray
) -> list[Linear]:
    """A text-anchored regression of each strength among the base classes; near classes follow, far ones keep texts.

    `texts` is the map from the base classes' texts, `noise` the covariance (D, D) of rows around their class.
    """
    anchor, bias = zero_shot_classifier(text)
    anchor = np.float32(ANCHOR_SCALE) * anchor
    views, labels = all_views(support)
    base_index = np.cumsum(is_base) - 1
    classifiers = []
    for base_weight in regressions(views, base_index[labels], anchor[is_base], noise):
        weight = anchor.copy()
        weight[is_base] = base_weight
        if is_near.any():
            weight[is_near] += texts.expected(base_weight - anchor[is_base], text.features[is_near])
        classifiers.append(Linear(weight, bias))
    return classifiers


def _zeroed(classifier: Linear, classes: np.ndarray) -> Linear:
    """The classifier with a logit of 0 for some classes, bool (C,)."""
    weight, bias = np.where(classes[:, None], 0, classifier.weight), np.where(classes, 0, classifier.bias)
    return Linear(weight.astype(np.float32), bias.astype(np.float32))
