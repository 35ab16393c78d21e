"""Text-anchored regression: softmax regression that starts at the zero-shot classifier and is pulled back to it."""

from __future__ import annotations

import numpy as np

from fewshot.rows import class_sums

# Values of λ; the weights of each are the start of the next. From the first to the last, they were best at one to
# sixteen shots on held-out rows of cars and scenes.
STRENGTHS = (3e-4, 1e-4, 3e-5, 1e-5)
STEPS = 25


def regressions(
    features: np.ndarray,
    labels: np.ndarray,
    anchor: np.ndarray,
    covariance: np.ndarray,
    strengths=STRENGTHS,
    steps: int = STEPS,
) -> list[np.ndarray]:
    """Weights W that minimise the mean cross-entropy of f·Wᵀ over noisy rows, plus λ/2·‖W − anchor‖².

    The noise is added in closed form: the expected cross-entropy is at most that of logits raised by
    ½(w_j − w_y)ᵀΣ(w_j − w_y), y being the true class (Wang et al. 2019, arXiv:1909.12220, equation 6).

    Parameters
    ----------
    features, labels : float32 array of shape (n, D), int array of shape (n,)
        The rows to learn from.
    anchor : float32 array of shape (C, D)
        The zero-shot classifier.
    covariance : float32 array of shape (D, D)
        Σ, of the noise.
    strengths : sequence of float
        Values of λ, descending.
    steps : int
        Steps of L-BFGS for each λ.

    Returns
    -------
    list of float32 arrays of shape (C, D)
        The weights for each λ.
    """
    from scipy.optimize import minimize  # a third of a second, which predict.py need not wait for

    weights, step = [], np.zeros(anchor.size)
    for strength in strengths:

        def objective(flat, strength=strength):
            value, gradient = _loss(
                flat.reshape(anchor.shape).astype(np.float32), features, labels, anchor, covariance, strength
            )
            return value, gradient.ravel().astype(np.float64)

        step = minimize(objective, step, jac=True, method="L-BFGS-B", options={"maxiter": steps}).x
        weights.append(anchor + step.reshape(anchor.shape).astype(np.float32))
    return weights


def _loss(step: np.ndarray, features, labels, anchor, covariance, strength: float) -> tuple[float, np.ndarray]:
    """The objective at W = anchor + step, and its gradient (C, D)."""
    n, rows = len(labels), np.arange(len(labels))
    weight = anchor + step
    spread = weight @ covariance  # (C, D)
    inner = spread @ weight.T  # (C, C): wᵀΣw of each pair of classes
    own = np.diagonal(inner)
    logits = features @ weight.T + 0.5 * (own + own[labels][:, None]) - inner[labels]  # (n, C)
    value, probabilities = cross_entropy(logits, labels)
    value += strength / 2 * float(np.einsum("cd,cd->", step, step))
    # The gradient of logit j of a row f of class y: f + Σ(w_j − w_y) by w_j, and −Σ(w_j − w_y) by w_y.
    probabilities[rows, labels] -= 1
    pairs = class_sums(probabilities, labels, len(weight))
    pairs[np.arange(len(pairs)), np.arange(len(pairs))] = 0
    pairs /= n
    moved = (pairs.sum(axis=0) + pairs.sum(axis=1))[:, None] * spread - (pairs + pairs.T) @ spread
    return value, probabilities.T @ features / n + moved + strength * step


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy of logits (n, C) at labels (n,), and their softmax (n, C), which its gradient needs."""
    rows = np.arange(len(labels))
    top = logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits - top)
    total = probabilities.sum(axis=1, keepdims=True)
    value = float((np.log(total[:, 0]) + top[:, 0] - logits[rows, labels]).mean())
    probabilities /= total
    return value, probabilities
