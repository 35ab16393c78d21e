"""Gradient descent over the rows of a task, in shuffled batches, on Jittor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import numpy as np

BATCH_SIZE = 256


def batches(rows: int) -> int:
    """How many batches an epoch over so many rows has."""
    return -(-rows // BATCH_SIZE)


def cosine(highest: float, done: int, total: int) -> float:
    """The learning rate after `done` of `total` steps (or epochs) of a cosine schedule from `highest` down to 0."""
    return highest * (1 + np.cos(np.pi * done / total)) / 2


def descend(
    optimizer, loss: Callable, rows: int, epochs: int, rate: Callable[[int, int], float], seed: int
) -> Iterator[int]:
    """Minimise a loss, one step for each batch, and yield the number of each epoch, from 0, when it has ended.

    Parameters
    ----------
    optimizer : jittor.optim.Optimizer
        Of the parameters to learn.
    loss : callable
        Takes an int32 Var, the indices of a batch of at most BATCH_SIZE rows, and returns the loss, a Var of one
        element.
    rows : int
        How many rows there are; every epoch goes through all of them, in an order drawn anew.
    epochs : int
    rate : callable
        Takes the epoch and the step, both from 0, and returns the learning rate; steps are counted over all epochs.
    seed : int
        Of the orders.
    """
    from jclip import runtime

    jt, rng, steps = runtime.jittor(), np.random.default_rng(seed), batches(rows)
    for epoch in range(epochs):
        order = jt.array(rng.permutation(rows).astype(np.int32))  # at once: each array waits for the device
        for i in range(steps):
            optimizer.lr = rate(epoch, epoch * steps + i)
            optimizer.step(loss(order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]))
        yield epoch
