"""Limited-memory BFGS (Liu & Nocedal 1989) in the dtype of its variables.

On 200,000 variables scipy's L-BFGS-B, which also handles bounds, spends more time on its own bookkeeping, in float64,
than a text-anchored regression on its loss. The stopping rules and constants here are those of scipy, so that the
results agree.
"""

from __future__ import annotations

from collections import deque
from typing import Callable

import numpy as np

MEMORY = 10  # pairs of steps and gradient changes that are kept
MIN_GRADIENT = 1e-5  # stops when no component of the gradient is larger
MIN_DECREASE = 2.2e-9  # stops when a step decreases the value by less, relative to max(1, value)
SUFFICIENT_DECREASE, SUFFICIENT_CURVATURE = 1e-3, 0.9  # c1 and c2 of the strong Wolfe conditions
MAX_STEPS = 20  # evaluations in one line search


def minimise(
    objective: Callable, x: np.ndarray, max_iterations: int, callback: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Minimise an objective, and return the x that was reached.

    Parameters
    ----------
    objective : callable
        Takes x, and returns the value, a float, and the gradient, of the shape of x.
    x : float array
        The start; it is not changed.
    max_iterations : int
    callback : callable
        Called after each iteration.
    """
    value, gradient = objective(x)
    memory: deque = deque(maxlen=MEMORY)
    for _ in range(max_iterations):
        if not np.abs(gradient).max() > MIN_GRADIENT:  # also stops at NaN
            break
        direction = _direction(gradient, memory)
        size = 1.0 if memory else min(1.0, 1 / float(np.linalg.norm(gradient)))
        found = _line_search(objective, x, value, gradient, direction, size)
        if found is None:
            break
        new_x, new_value, new_gradient = found
        step, change = new_x - x, new_gradient - gradient
        curvature = _dot(step, change)
        if curvature > np.finfo(x.dtype).eps * _dot(change, change):
            memory.append((step, change, 1 / curvature))
        decrease, scale = value - new_value, max(abs(value), abs(new_value), 1)
        x, value, gradient = new_x, new_value, new_gradient
        callback()
        if decrease <= MIN_DECREASE * scale:
            break
    return x


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel())


def _direction(gradient: np.ndarray, memory: deque) -> np.ndarray:
    """Return minus the product of the approximate inverse Hessian and the gradient, by the two-loop recursion."""
    direction, alphas = -gradient, []
    for step, change, rho in reversed(memory):
        alphas.append(rho * _dot(step, direction))
        direction -= direction.dtype.type(alphas[-1]) * change
    if memory:
        _, change, rho = memory[-1]
        direction *= direction.dtype.type(1 / (rho * _dot(change, change)))
    for (step, change, rho), alpha in zip(memory, reversed(alphas)):
        direction += direction.dtype.type(alpha - rho * _dot(change, direction)) * step
    return direction


def _line_search(objective, x, value, gradient, direction, size):
    """Return (x, value, gradient) at a step that meets the strong Wolfe conditions, or None if none is found."""
    slope, low, high = _dot(gradient, direction), 0.0, np.inf
    if not slope < 0:
        return None
    low_slope = slope
    for _ in range(MAX_STEPS):
        new_x = x + x.dtype.type(size) * direction
        new_value, new_gradient = objective(new_x)
        new_slope = _dot(new_gradient, direction)
        decreased = new_value <= value + SUFFICIENT_DECREASE * size * slope
        if decreased and abs(new_slope) <= SUFFICIENT_CURVATURE * abs(slope):
            return new_x, new_value, new_gradient
        # the zero of the slope, taken as linear between `low` and `size`
        zero = low - low_slope * (size - low) / max(new_slope - low_slope, 1e-9)
        if decreased and new_slope < 0:
            low, low_slope, size = size, new_slope, min(max(zero, 2 * size), 10 * size)
        else:
            high = size
            size = low + min(max(zero - low, 0.1 * (high - low)), 0.7 * (high - low))
        if size >= high:
            size = (low + high) / 2
    return None
