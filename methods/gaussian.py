"""Gaussian discriminant analysis: one mean a class, one covariance for all; the means helped by the classes' texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.rows import class_sums

from .linear import Linear

# In every direction: a single shot, or shots that are copies, would else have no variance, and the matrix no inverse.
MIN_VARIANCE = 1e-6


class ClassMeans(NamedTuple):
    """The mean row of each class, and how many rows it is of."""

    means: np.ndarray  # float64 (C, D), 0 where a class has no row
    counts: np.ndarray  # int64 (C,)


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> ClassMeans:
    """The means of the rows (n, D) with labels (n,) of so many classes."""
    counts = np.bincount(labels, minlength=classes)
    return ClassMeans(class_sums(features, labels, classes) / np.maximum(counts, 1)[:, None], counts)


class TextMap:
    """Ridge regression (Hoerl & Kennard 1970) from the texts of some classes to one row of each, both centred.

    Parameters
    ----------
    text : array of shape (n, D)
        The texts of the n classes.
    strength : float
        Added to the eigenvalues of the texts' scatter matrix; those of 400 classes sum to about 150.
    """

    def __init__(self, text: np.ndarray, strength: float):
        self.centre, self.strength = text.mean(axis=0), strength
        centred = (text - self.centre).astype(np.float64)
        self.inverse = np.linalg.inv(centred.T @ centred + strength * np.eye(text.shape[1]))
        self.solution = self.inverse @ centred.T  # (D, n); times rows it is the matrix of the map to them

    def expected(self, rows: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Rows (m, E) predicted from texts (m, D), by the map from the n texts to `rows` (n, E)."""
        mean = rows.mean(axis=0)
        return (text - self.centre) @ (self.solution @ (rows - mean)).astype(np.float32) + mean

    def novelty(self, text: np.ndarray) -> np.ndarray:
        """How unlike the map's n texts other texts (m, D) are, (m,): the posterior variance of Bayesian regression."""
        centred = text - self.centre
        return self.strength * np.einsum("md,de,me->m", centred, self.inverse, centred)

    def own_novelty(self, text: np.ndarray) -> np.ndarray:
        """The novelty (n,) that each of the map's own n texts would have if it were left out, in closed form."""
        own = self.novelty(text) / self.strength
        return self.strength * own / (1 - own)


def pooled_covariance(residuals: np.ndarray, freedom: int) -> np.ndarray:
    """Covariance of residuals, shrunk towards their mean variance in all directions (after Ledoit & Wolf 2004).

    Parameters
    ----------
    residuals : array of shape (n, D)
    freedom : int
        Their degrees of freedom: n less the number of means that were subtracted. The covariance itself has the weight
        freedom/(freedom + D).

    Returns
    -------
    float32 array of shape (D, D)
    """
    width = residuals.shape[1]
    scatter = residuals.T @ residuals / max(1, freedom)
    share, variance = freedom / (freedom + width), max(np.trace(scatter) / width, MIN_VARIANCE)
    return (share * scatter + (1 - share) * variance * np.eye(width)).astype(np.float32)


def discriminant(means: np.ndarray, covariance: np.ndarray) -> Linear:
    """Log-likelihoods of the classes up to a common term: f·Σ⁻¹μ − ½μᵀΣ⁻¹μ (Fisher 1936).

    means are of shape (C, D), the covariance (D, D).
    """
    weight = np.linalg.solve(covariance.astype(np.float64), means.T.astype(np.float64)).T
    return Linear(weight.astype(np.float32), (-0.5 * (weight * means).sum(axis=1)).astype(np.float32))


def within_class(
    features: np.ndarray, labels: np.ndarray, means: np.ndarray, counts: np.ndarray, expected: np.ndarray
) -> np.ndarray:
    """Pooled covariance of rows around the means of their classes, float32 (D, D).

    Classes of a single row say nothing of it. Where there are no others, rows are compared with the expected means.

    Parameters
    ----------
    features, labels : arrays of shape (n, D) and (n,)
    means, counts : arrays of shape (C, D) and (C,)
        As `class_means` returns them.
    expected : array of shape (C, D)
        Means that were predicted without these rows, or nearly so.
    """
    if counts.max() < 2:
        return pooled_covariance(features - expected[labels], len(labels))
    several = counts[labels] > 1
    freedom = np.count_nonzero(several) - np.count_nonzero(counts > 1)
    return pooled_covariance((features - means[labels])[several], freedom)
