"""Gaussian discriminants (one mean per class, one covariance for all), and ridge regression of means from texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.rows import class_sums

from .linear import Linear

# Lower bound of the mean variance per dimension; with single shots, or equal ones, the covariance would be singular.
MIN_VARIANCE = 1e-6


class ClassMeans(NamedTuple):
    """The mean row of each class, and the number of rows in it."""

    means: np.ndarray  # float64 (C, D), 0 for a class without rows
    counts: np.ndarray  # int64 (C,)


def class_means(features: np.ndarray, labels: np.ndarray, n_classes: int) -> ClassMeans:
    """Return the mean of the rows (n, D) of each class, for labels (n,)."""
    counts = np.bincount(labels, minlength=n_classes)
    return ClassMeans(class_sums(features, labels, n_classes) / np.maximum(counts, 1)[:, None], counts)


class TextMap:
    """Ridge regression (Hoerl & Kennard 1970) from the text of a class to a target row of the class, both centred.

    Parameters
    ----------
    text : array of shape (n, D)
        The texts of the n classes to fit to.
    strength : float
        Added to the eigenvalues of the texts' scatter matrix. For 400 classes, these eigenvalues sum to about 150.
    """

    def __init__(self, text: np.ndarray, strength: float):
        self.centre, self.strength = text.mean(axis=0), strength
        centred = (text - self.centre).astype(np.float64)
        self.inverse = np.linalg.inv(centred.T @ centred + strength * np.eye(text.shape[1]))
        self.solution = self.inverse @ centred.T  # (D, n); solution @ targets is the coefficient matrix

    def predict(self, targets: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Fit the n texts to targets (n, E), and return the targets (m, E) predicted for other texts (m, D)."""
        mean = targets.mean(axis=0)
        return (text - self.centre) @ (self.solution @ (targets - mean)).astype(np.float32) + mean

    def novelty(self, text: np.ndarray) -> np.ndarray:
        """Return the posterior variance (m,) of Bayesian regression at texts (m, D), high far from the n texts."""
        centred = text - self.centre
        return self.strength * np.einsum("md,de,me->m", centred, self.inverse, centred)

    def leave_one_out_novelty(self, text: np.ndarray) -> np.ndarray:
        """Return the novelty (n,) of each of the n texts under the map of the others, with the centre of all n."""
        leverage = self.novelty(text) / self.strength
        return self.strength * leverage / (1 - leverage)


def pooled_covariance(residuals: np.ndarray, dof: int) -> np.ndarray:
    """Return the shrunk covariance of residuals, float32 (D, D).

    Parameters
    ----------
    residuals : array of shape (n, D)
    dof : int
        Degrees of freedom: n minus the number of means that were subtracted.
    """
    return shrunk(residuals.T @ residuals / max(1, dof), dof)


def shrunk(covariance: np.ndarray, dof: int) -> np.ndarray:
    """Return a covariance (D, D), shrunk towards a multiple of the identity (after Ledoit & Wolf 2004), as float32.

    The unshrunk covariance has the weight dof/(dof + D), where dof are the degrees of freedom that it was made from.
    """
    width = len(covariance)
    weight, variance = dof / (dof + width), max(np.trace(covariance) / width, MIN_VARIANCE)
    return (weight * covariance + (1 - weight) * variance * np.eye(width)).astype(np.float32)


def discriminant(means: np.ndarray, covariance: np.ndarray) -> Linear:
    """Return the linear classifier whose logits are the log-likelihoods f·Σ⁻¹μ − ½μᵀΣ⁻¹μ (Fisher 1936).

    A term common to all classes is left out. The means have shape (C, D), the covariance (D, D).
    """
    weight = np.linalg.solve(covariance.astype(np.float64), means.T.astype(np.float64)).T
    return Linear(weight.astype(np.float32), (-0.5 * (weight * means).sum(axis=1)).astype(np.float32))


def within_class_covariance(
    features: np.ndarray, labels: np.ndarray, means: np.ndarray, counts: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """Return the pooled covariance of rows around their class means, float32 (D, D).

    Only classes with several rows are used. If there are none, the covariance is around the predicted means.

    Parameters
    ----------
    features, labels : arrays of shape (n, D) and (n,)
    means, counts : arrays of shape (C, D) and (C,)
        As `class_means` returns them.
    predicted : array of shape (C, D)
        Class means predicted from the texts; they should depend little on these rows.
    """
    if counts.max() < 2:
        return pooled_covariance(features - predicted[labels], len(labels))
    several = counts[labels] > 1
    dof = np.count_nonzero(several) - np.count_nonzero(counts > 1)
    return pooled_covariance((features - means[labels])[several], dof)
