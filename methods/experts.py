"""The experts of a blend: linear classifiers over all classes, learned from the shots and the texts.

They are the zero-shot classifier, text-anchored regressions of several strengths (regression.py) and Gaussian
discriminants (gaussian.py). The class means of the Gaussians are shrunk towards means predicted from the texts.

A base class has shots, a new class has none. A new class is near if its text is similar to the texts of the base
classes, so that what was learned about them transfers to it; otherwise it is far.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Support, Text
from fewshot.rows import all_views, has_shots, shot_rows

from .gaussian import TextMap, class_means, discriminant, within_class_covariance
from .linear import Linear, zero_shot_classifier
from .regression import STRENGTHS, regressions

# (strength of the ridge regression from texts to means, number of shots that a predicted mean is worth)
GAUSSIANS = ((0.1, 4), (0.1, 16), (1, 4), (1, 16))
EXPERTS = (
    "zero-shot",
    *(f"regression {strength:g}" for strength in STRENGTHS),
    *(f"gaussian {strength:g}, {shots}" for strength, shots in GAUSSIANS),
)
N_ANCHORED = 1 + len(STRENGTHS)  # number of experts before the Gaussians; only these have logits for far classes
# The regressions start from the zero-shot classifier times this factor. 1.5 to 2 was best on rows that were neither
# learned from nor test rows; see docs/log.md.
ANCHOR_SCALE = 1.5
# Strengths of two ridge regressions from texts. That of strength DELTA_RIDGE predicts the difference W − anchor of a
# text-anchored regression; that of NOVELTY_RIDGE predicts class means, to tell near from far classes and to estimate
# the noise of the shots.
DELTA_RIDGE, NOVELTY_RIDGE = 0.1, 1
NEAR_QUANTILE = 0.99  # a new class is near if its novelty is at most this quantile of the base classes' novelty


class Experts(NamedTuple):
    """All experts learned from one set of shots."""

    classifiers: list[Linear]  # in the order of EXPERTS, each over all C classes
    is_base: np.ndarray  # bool (C,)
    is_near: np.ndarray  # bool (C,), new and near

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits (experts, M, C) of features (M, D)."""
        return np.stack([classifier.logits(features) for classifier in self.classifiers])


def learn_experts(text: Text, support: Support) -> Experts:
    """Learn every expert from all shots of a support set.

    The training losses are over base classes only. For a near class, the class mean and the regressions' difference
    W − anchor are predicted from its text. A far class keeps its anchor, ANCHOR_SCALE times its zero-shot weights, in
    the regressions and gets a logit of 0 from the Gaussians.
    """
    is_base = has_shots(support.labels, len(text.names))
    base_text = text.features[is_base]
    base_index = np.cumsum(is_base) - 1  # label -> number among the base classes
    rows, labels = shot_rows(support.features), base_index[support.labels]
    means, counts = class_means(rows, labels, is_base.sum())
    strengths = {NOVELTY_RIDGE, DELTA_RIDGE, *(strength for strength, _ in GAUSSIANS)}
    maps = {strength: TextMap(base_text, strength) for strength in strengths}
    predicted = {strength: maps[strength].predict(means, text.features) for strength in strengths}
    covariances = {
        strength: within_class_covariance(rows, labels, means, counts, predicted[strength][is_base])
        for strength in strengths
    }
    is_near = ~is_base & _is_near(maps[NOVELTY_RIDGE], text.features, base_text)
    classifiers = [
        zero_shot_classifier(text),
        *_regressions(text, support, is_base, is_near, maps[DELTA_RIDGE], covariances[NOVELTY_RIDGE]),
    ]
    for strength, pseudo_shots in GAUSSIANS:
        centres = predicted[strength].copy()
        total = counts[:, None] + pseudo_shots
        centres[is_base] = (counts[:, None] * means + pseudo_shots * centres[is_base]) / total
        classifiers.append(_zero_logits(discriminant(centres, covariances[strength]), ~(is_base | is_near)))
    return Experts([_zero_if_not_finite(classifier) for classifier in classifiers], is_base, is_near)


def _is_near(text_map: TextMap, text: np.ndarray, base_text: np.ndarray) -> np.ndarray:
    """Return which texts (C, D) are near the n texts (n, D) that the map was fitted to, bool (C,)."""
    return text_map.novelty(text) <= np.quantile(text_map.leave_one_out_novelty(base_text), NEAR_QUANTILE)


def _regressions(
    text: Text, support: Support, is_base: np.ndarray, is_near: np.ndarray, text_map: TextMap, covariance: np.ndarray
) -> list[Linear]:
    """Fit a text-anchored regression of each strength over the base classes, and extend it to the new classes.

    For near classes the difference from the anchor is predicted by `text_map`, which is fitted to the texts of the base
    classes; far classes stay at the anchor. `covariance` is that of rows around their class means, (D, D).
    """
    anchor, bias = zero_shot_classifier(text)
    anchor = np.float32(ANCHOR_SCALE) * anchor
    views, labels = all_views(support)
    base_index = np.cumsum(is_base) - 1
    classifiers = []
    for base_weight in regressions(views, base_index[labels], anchor[is_base], covariance):
        weight = anchor.copy()
        weight[is_base] = base_weight
        if is_near.any():
            weight[is_near] += text_map.predict(base_weight - anchor[is_base], text.features[is_near])
        classifiers.append(Linear(weight, bias))
    return classifiers


def _zero_if_not_finite(classifier: Linear) -> Linear:
    """Return the classifier, or one of zeros if it overflowed, so that a weight of 0 removes it from a sum."""
    finite = np.isfinite(classifier.weight).all() and np.isfinite(classifier.bias).all()
    return classifier if finite else Linear(np.zeros_like(classifier.weight), np.zeros_like(classifier.bias))


def _zero_logits(classifier: Linear, mask: np.ndarray) -> Linear:
    """Return the classifier with the logits of the classes in `mask`, bool (C,), set to 0."""
    weight, bias = np.where(mask[:, None], 0, classifier.weight), np.where(mask, 0, classifier.bias)
    return Linear(weight.astype(np.float32), bias.astype(np.float32))
