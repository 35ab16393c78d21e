"""Gaussian discriminant analysis: one mean a class, one covariance for all; the means helped by the classes' texts."""

from __future__ import annotations

import numpy as np

from .task import Linear, class_sums

LEAST_VARIANCE = (
    1e-6  # in every direction: a single shot, or shots that are copies, would else have none and no inverse
)


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean row of each class, float64 (classes, D), zero where it has no row; and how many rows each has,
    (classes,)."""
    counts = np.bincount(labels, minlength=classes)
    return class_sums(features, labels, classes) / np.maximum(counts, 1)[:, None], counts


class TextMap:
    """Ridge regression from the texts (n, D) of some classes to rows (n, E) of theirs, both centred; Hoerl & Kennard
    1970.

    strength : added to the eigenvalues of the texts' scatter matrix; that of 400 classes sums to about 150
    """

    def __init__(self, text: np.ndarray, strength: float):
        self.centre, self.strength = text.mean(axis=0), strength
        centred = (text - self.centre).astype(np.float64)
        self.inverse = np.linalg.inv(centred.T @ centred + strength * np.eye(text.shape[1]))
        self.solution = self.inverse @ centred.T  # (D, n): of the map's matrix, for any rows

    def expected(self, rows: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The rows (m, E) that texts (m, D) lead to expect where the map's own have `rows` (n, E)."""
        middle = rows.mean(axis=0)
        return (text - self.centre) @ (self.solution @ (rows - middle)).astype(np.float32) + middle

    def novelty(self, text: np.ndarray) -> np.ndarray:
        """How much of each centred text the map has not seen the like of, (m,): the posterior variance of Bayesian
        regression."""
        centred = text - self.centre
        return self.strength * np.einsum("md,de,me->m", centred, self.inverse, centred)

    def own_novelty(self, text: np.ndarray) -> np.ndarray:
        """The novelty that each of the map's own texts (n, D) would have if it were left out, in closed form."""
        own = self.novelty(text) / self.strength
        return self.strength * own / (1 - own)


def pooled_covariance(residuals: np.ndarray, freedom: int) -> np.ndarray:
    """Covariance of residuals (n, D), weighed freedom/(freedom + D) against its mean variance in all directions;
    float32 (D, D).

    freedom : of the residuals, n less the number of means that were taken off them. Ledoit & Wolf 2004 is the idea.
    """
    width = residuals.shape[1]
    scatter = residuals.T @ residuals / max(1, freedom)
    share, variance = freedom / (freedom + width), max(np.trace(scatter) / width, LEAST_VARIANCE)
    return (share * scatter + (1 - share) * variance * np.eye(width)).astype(np.float32)


def discriminant(means: np.ndarray, covariance: np.ndarray) -> Linear:
    """Log-likelihoods of the classes up to a common term: f·Σ⁻¹μ − ½μᵀΣ⁻¹μ (Fisher 1936); means (C, D), covariance (D,
    D)."""
    weight = np.linalg.solve(covariance.astype(np.float64), means.T.astype(np.float64)).T
    return Linear(weight.astype(np.float32), (-0.5 * (weight * means).sum(axis=1)).astype(np.float32))


def within_class(
    features: np.ndarray, labels: np.ndarray, means: np.ndarray, counts: np.ndarray, expected: np.ndarray
) -> np.ndarray:
    """Pooled covariance of rows (n, D) around their classes' means; where no class has two rows, around the expected
    ones."""
    if counts.max() < 2:
        return pooled_covariance(features - expected[labels], len(labels))
    several = counts[labels] > 1
    return pooled_covariance(
        (features - means[labels])[several], np.count_nonzero(several) - np.count_nonzero(counts > 1)
    )
