"""Linear classifiers, and the adapters that they become."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Text


class Linear(NamedTuple):
    """A classifier f·Wᵀ + b."""

    weight: np.ndarray  # (C, D)
    bias: np.ndarray  # (C,)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(M, C) of features (M, D)."""
        return features @ self.weight.T + self.bias


def zero_shot_classifier(text: Text) -> Linear:
    """The classes' texts times the logit scale (Radford et al. 2021, arXiv:2103.00020)."""
    return Linear(text.scale * text.features, np.zeros(len(text.names), np.float32))


def linear_adapter(method: str, text: Text, classifier: Linear) -> Adapter:
    """An adapter with an empty cache."""
    width, classes = text.features.shape[1], len(text.names)
    keys, values = np.zeros((0, width), np.float32), np.zeros((0, classes), np.float32)
    return Adapter(method, text.names, text.features, text.scale, keys, values, 0.0, 0.0, {}, *classifier)
