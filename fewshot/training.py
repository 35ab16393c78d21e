"""Mini-batch gradient descent over the rows of a task with Jittor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import numpy as np

BATCH_SIZE = 256


def n_batches(n_rows: int) -> int:
    """Return the number of batches in an epoch over n_rows rows."""
    return -(-n_rows // BATCH_SIZE)


def cosine_lr(max_lr: float, done: int, total: int) -> float:
    """Return the learning rate after `done` of `total` steps or epochs of a cosine schedule from `max_lr` to 0."""
    return max_lr * (1 + np.cos(np.pi * done / total)) / 2


def descend(
    optimizer, loss: Callable, n_rows: int, epochs: int, learning_rate: Callable[[int, int], float], seed: int
) -> Iterator[int]:
    """Minimise a loss with one step per batch, and yield the index of each epoch (from 0) after it.

    Parameters
    ----------
    optimizer : jittor.optim.Optimizer
        Holds the parameters to learn.
    loss : callable
        Takes an int32 Var, the indices of a batch of at most BATCH_SIZE rows, and returns the loss, a Var of one
        element.
    n_rows : int
        The number of rows; each epoch visits all of them in a new random order.
    epochs : int
    learning_rate : callable
        Takes the epoch and the step, both from 0, and returns the learning rate. The step is not reset
        between epochs.
    seed : int
        Seed of the random orders.
    """
    from jclip import runtime

    jt, rng, steps_per_epoch = runtime.jittor(), np.random.default_rng(seed), n_batches(n_rows)
    for epoch in range(epochs):
        # one transfer per epoch, since each transfer waits for the device
        order = jt.array(rng.permutation(n_rows).astype(np.int32))
        for i in range(steps_per_epoch):
            optimizer.lr = learning_rate(epoch, epoch * steps_per_epoch + i)
            optimizer.step(loss(order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]))
        yield epoch
