"""Which unlabelled photographs to label next: those that the classifier is unsure of, each unlike the others.

bench/label_next.py measures what labelling them gives; docs/report.md has the figures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from .metrics import spreadsheet_text
from .space import around

SUGGESTED = 100  # photographs in the list
MAX_POOL = 3000  # photographs that are compared with each other, the least sure ones
COLUMNS = ("rank", "name", "likeliest", "probability", "second", "second_probability")


def suggest(probabilities: np.ndarray, features: np.ndarray, n: int) -> list[int]:
    """Return the indices of at most n photographs to label, the most useful first.

    Of each photograph, the gradient of the loss for the class that it gets now is (p − e)·fᵀ, with its probabilities p,
    the unit vector e of its likeliest class, and its features f around their mean. It is long where the classifier is
    unsure, and two of them are alike where photographs look alike and are torn between the same classes. Photographs
    are chosen one after the other so that for every photograph there is one among the chosen whose gradient is like its
    own (facility location): each stands for many others that the classifier is unsure of, and no two for the same.

    Parameters
    ----------
    probabilities : float array of shape (M, C)
    features : float32 array of shape (M, D)
    n : int
    """
    squares = np.einsum("mc,mc->m", probabilities, probabilities)
    length = squares - 2 * probabilities.max(axis=1) + 1  # of p − e, squared
    pool = np.sort(np.argsort(-length, kind="stable")[:MAX_POOL])
    unsure = probabilities[pool].astype(np.float32)
    unsure[np.arange(len(pool)), unsure.argmax(axis=1)] -= 1
    alike = _alike(unsure, features[pool])
    best, chosen = np.zeros(len(pool), np.float32), []
    for _ in range(min(n, len(pool))):
        gain = np.array([np.maximum(row - best, 0).sum() for row in alike])
        gain[chosen] = -1
        index = int(gain.argmax())
        chosen.append(index)
        np.maximum(best, alike[index], out=best)
    return pool[chosen].tolist()


def _alike(unsure: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the products of the photographs' gradients, none below 0: float32 (M, M)."""
    placed = around(features, features.mean(axis=0))
    return np.maximum(unsure @ unsure.T, 0) * np.maximum(placed @ placed.T, 0)


def table(rows: Iterable[Sequence]) -> bytes:
    """Return label_next.csv, with COLUMNS: UTF-8 with a byte order mark, names that a spreadsheet does not compute."""
    text = io.StringIO(newline="")
    written = csv.writer(text, lineterminator="\n")
    written.writerow(COLUMNS)
    written.writerows([spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig")
