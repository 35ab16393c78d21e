"""Features around their mean: what all photographs of a task share does not make two of them alike."""

from __future__ import annotations

import numpy as np


def around(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return unit rows of the features (n, D) minus their mean (D,); a row that is the mean itself becomes 0."""
    centred = features - mean
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def distance(similarity: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of unit rows from their cosine similarity."""
    return np.sqrt(np.maximum(2 - 2 * similarity, 0))
