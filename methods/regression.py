"""Text-anchored regression: softmax regression with an L2 penalty towards weights that come from the texts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fewshot.rows import class_sums
from jclip.progress import Progress

from .lbfgs import minimise

# Values of λ; the solution of each is the start of the next. On held-out rows of Stanford Cars and SUN397, the largest
# was best at one shot and the smallest at sixteen.
STRENGTHS = (3e-4, 1e-4, 3e-5, 1e-5)
MAX_ITERATIONS = 25


def regressions(
    features: np.ndarray,
    labels: np.ndarray,
    anchor: np.ndarray,
    covariance: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    max_iterations: int = MAX_ITERATIONS,
) -> list[np.ndarray]:
    """Fit weights W by L-BFGS to an upper bound of the expected cross-entropy of noisy rows, plus λ/2·‖W − anchor‖².

    The logits are f·Wᵀ, and the noise on the rows f is Gaussian. The bound has a closed form: the mean cross-entropy
    with ½(w_j − w_y)ᵀΣ(w_j − w_y) added to logit j, where y is the true class (Wang et al. 2019, arXiv:1909.12220,
    equation 6).

    Parameters
    ----------
    features, labels : float32 array of shape (n, D), int array of shape (n,)
        The rows to learn from.
    anchor : float32 array of shape (C, D)
        The weights that the penalty pulls towards.
    covariance : float32 array of shape (D, D)
        Σ, the covariance of the noise.
    strengths : sequence of float
        Values of λ, in descending order.
    max_iterations : int
        Maximum number of iterations for each λ; the default stops before the minimum is reached.

    Returns
    -------
    list of float32 arrays of shape (C, D)
        The weights for each λ.
    """
    weights, delta = [], np.zeros_like(anchor)
    with Progress(len(strengths) * max_iterations, "regressions", " iteration", leave=False) as progress:
        for strength in strengths:
            loss = partial(_loss, features=features, labels=labels, anchor=anchor, covariance=covariance)
            delta = minimise(partial(loss, strength=strength), delta, max_iterations, progress.update)
            weights.append(anchor + delta)
    return weights


def _loss(delta: np.ndarray, features, labels, anchor, covariance, strength: float) -> tuple[float, np.ndarray]:
    """Return the objective at W = anchor + delta, and its gradient (C, D)."""
    n, rows = len(labels), np.arange(len(labels))
    weight = anchor + delta
    weight_cov = weight @ covariance  # (C, D)
    variance = (weight_cov * weight).sum(axis=1)  # wᵀΣw of each class
    # For a row f of class y, logit j is f·w_j + ½(w_j − w_y)ᵀΣ(w_j − w_y) = (f − Σw_y)·w_j + ½w_jᵀΣw_j + a constant.
    shifted = features - weight_cov[labels]  # (n, D)
    logits = shifted @ weight.T  # (n, C)
    logits += 0.5 * variance
    logits += 0.5 * variance[labels][:, None]
    value, probabilities = cross_entropy(logits, labels)
    value += strength / 2 * float(delta.ravel() @ delta.ravel())
    # The gradient of logit j is f − Σw_y + Σw_j for w_j and −Σ(w_j − w_y) for w_y; for j = y both Σw_y cancel.
    probabilities[rows, labels] -= 1
    probabilities /= n
    pairs = class_sums(probabilities, labels, len(weight))  # (C, C)
    gradient = probabilities.T @ shifted + pairs.sum(axis=0)[:, None] * weight_cov - pairs @ weight_cov
    return value, gradient + np.float32(strength) * delta


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean cross-entropy of logits (n, C) with labels (n,), and the softmax (n, C) of the logits."""
    rows = np.arange(len(labels))
    top = logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits - top)
    total = probabilities.sum(axis=1, keepdims=True)
    value = float((np.log(total[:, 0]) + top[:, 0] - logits[rows, labels]).mean())
    probabilities /= total
    return value, probabilities
