"""TransCLIP with shots, for comparison.

Zanella, Gérin and Ben Ayed, "Boosting Vision-Language Models with Transduction", NeurIPS 2024, arXiv:2406.01837;
constants are those of the authors' code, github.com/MaxZanella/transduction-for-vlms.

Gaussians with one diagonal covariance, a graph of each row's nearest test rows, and a tie to the probabilities of a
classifier; the weight of the shots is chosen on the validation rows, each of which takes the class of the test row
nearest to it.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from fewshot.artifacts import Split, Support
from fewshot.rows import one_hot, softmax, unit_rows

NEIGHBOURS = 3
ROUNDS, STEPS = 10, 5  # of all updates, and of the assignments in each of them
TEMPERATURE = 50.0  # by which the paper's first two terms are divided
TIE = 0.5  # weight of the classifier, with shots
SHOT_WEIGHTS = (0.002, 0.01, 0.02, 0.2)


def transclip(probabilities: np.ndarray, test: Split, support: Support, val: Split) -> np.ndarray:
    """Return the log-probabilities (T, C) of test rows, from those (T, C) of a classifier.

    Every class must have shots.
    """
    nearest = (val.features @ test.features.T).argmax(axis=1)
    shots, labels = support.features[:, 0], one_hot(support.labels, probabilities.shape[1])
    graph = _graph(np.concatenate([test.features, shots]), test.features)
    best = max(
        (_assign(probabilities, test.features, shots, labels, graph, weight) for weight in SHOT_WEIGHTS),
        key=lambda assigned: (assigned[nearest].argmax(axis=1) == val.labels).mean(),
    )
    return np.log(best + 1e-30)


def _graph(rows: np.ndarray, test: np.ndarray) -> csr_matrix:
    """Return the similarities (n, T) of each row with its NEIGHBOURS nearest test rows, itself left out."""
    similarity = rows @ test.T
    similarity[np.arange(len(test)), np.arange(len(test))] = -np.inf
    near = np.argpartition(-similarity, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    values = np.take_along_axis(similarity, near, axis=1)
    row_of = np.arange(len(rows)).repeat(NEIGHBOURS)
    return csr_matrix((values.ravel(), (row_of, near.ravel())), similarity.shape)


def _assign(
    probabilities: np.ndarray,
    test: np.ndarray,
    shots: np.ndarray,
    labels: np.ndarray,
    graph: csr_matrix,
    shot_weight: float,
) -> np.ndarray:
    """Return the assignments (T, C) of test rows to classes, for one weight of the shots."""
    n_test, width = test.shape
    assigned, tie = probabilities, TIE * np.log(probabilities + 1e-30)
    means, variance = unit_rows(labels.T @ shots), np.full(width, 1 / width, np.float32)
    of_test, of_shots = 1 / n_test, shot_weight * TEMPERATURE / len(shots)
    for round_ in range(ROUNDS + 1):
        likelihood = (test / variance) @ means.T - 0.5 * (means**2 / variance).sum(axis=1)
        for _ in range(STEPS):
            known = np.concatenate([assigned, labels])
            around = graph.T @ known + (graph @ assigned)[:n_test]
            assigned = softmax(tie + (likelihood + TEMPERATURE / (2 * NEIGHBOURS) * around) / TEMPERATURE)
        if round_ == ROUNDS:
            return assigned
        sums = of_test * assigned.T @ test + of_shots * labels.T @ shots
        totals = of_test * assigned.sum(axis=0) + of_shots * labels.sum(axis=0)
        means = unit_rows(sums / totals[:, None])
        squares = of_test * (test**2).sum(axis=0) + of_shots * (shots**2).sum(axis=0)
        variance = (squares - 2 * (sums * means).sum(axis=0) + (totals[:, None] * means**2).sum(axis=0)) / totals.sum()
