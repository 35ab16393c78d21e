"""Linear classifiers, and the adapters made from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Text


class Linear(NamedTuple):
    """A classifier f·Wᵀ + b."""

    weight: np.ndarray  # float32 (C, D)
    bias: np.ndarray  # float32 (C,)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits (M, C) of features (M, D)."""
        return features @ self.weight.T + self.bias


def zero_shot_classifier(text: Text) -> Linear:
    """Return the classifier with the weights scale·text (Radford et al. 2021, arXiv:2103.00020)."""
    return Linear(text.scale * text.features, np.zeros(len(text.names), np.float32))


def linear_adapter(method: str, text: Text, classifier: Linear) -> Adapter:
    """Return the adapter of a linear classifier, with an empty cache."""
    return Adapter.without_cache(method, text, *classifier)
