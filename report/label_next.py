"""Which unlabelled photographs to label next: those that the classifier is unsure of, unlike each other and the shots.

bench/label_next.py measures what labelling them gives; docs/report.md has the figures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from fewshot.rows import chunks

from .metrics import spreadsheet_text
from .space import around

SUGGESTED = 100  # photographs in the list
COLUMNS = ("rank", "name", "likeliest", "probability", "second", "second_probability")


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """Return 1 minus the margin between the two likeliest classes, (M,), of probabilities (M, C)."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    best = -np.partition(-probabilities, 1, axis=1)[:, :2]
    return 1 - (best[:, 0] - best[:, 1])


def suggest(uncertain: np.ndarray, features: np.ndarray, shots: np.ndarray, n: int) -> list[int]:
    """Return the indices of at most n photographs to label, the most useful first.

    Photographs are chosen one after the other: the next is that with the highest product of its uncertainty and its
    distance (1 minus the cosine similarity, around the mean of all) to the nearest shot or photograph already chosen.

    Parameters
    ----------
    uncertain : float array of shape (M,)
        What `uncertainty` returns.
    features : float32 array of shape (M, D)
    shots : float32 array of shape (N, D)
    n : int
    """
    if not len(features):
        return []
    mean = features.mean(axis=0)
    placed = around(features, mean)
    nearest = np.full(len(placed), -1.0, np.float32)
    if len(shots):
        placed_shots = around(shots, mean)
        for rows in chunks(len(placed), len(shots)):
            nearest[rows] = (placed[rows] @ placed_shots.T).max(axis=1)
    chosen: list[int] = []
    for _ in range(min(n, len(placed))):
        gain = uncertain * (1 - nearest)
        gain[chosen] = -np.inf
        index = int(gain.argmax())
        chosen.append(index)
        np.maximum(nearest, placed @ placed[index], out=nearest)
    return chosen


def table(rows: Iterable[Sequence]) -> bytes:
    """Return label_next.csv, with COLUMNS: UTF-8 with a byte order mark, names that a spreadsheet does not compute."""
    text = io.StringIO(newline="")
    written = csv.writer(text, lineterminator="\n")
    written.writerow(COLUMNS)
    written.writerows([spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig")
