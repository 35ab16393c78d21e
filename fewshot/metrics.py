"""Top-1 and top-5, over all, per group and per class."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

import numpy as np

from .artifacts import written_whole


def top_classes(logits: np.ndarray, k: int = 5) -> np.ndarray:
    """The k likeliest classes of each row, best first; of equal logits the lower label comes first.

    logits (M, C) -> int64 (M, min(k, C)).
    """
    k = min(k, logits.shape[1])
    if 4 * k >= logits.shape[1]:
        return np.argsort(-logits, axis=1, kind="stable")[:, :k]
    least = -np.partition(-logits, k - 1, axis=1)[:, k - 1 : k]  # the k-th best of each row
    ranked = np.empty((len(logits), k), np.int64)
    for row, (values, threshold) in enumerate(zip(logits, least)):
        candidates = np.flatnonzero(values >= threshold)  # in order of their labels, so that the stable sort keeps it among equals
        ranked[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return ranked


def score(ranked: np.ndarray, labels: np.ndarray, names: Sequence[str], groups: Sequence[str]) -> dict:
    """Accuracies of the rows whose label is known (0 or more).

    Parameters
    ----------
    ranked : int (M, 5 or more), from `top_classes`
    labels : int (M,), -1 where unknown
    names, groups : of the C classes

    Returns
    -------
    {"n", "top1", "top5", "groups": {group: {"n", "top1", "top5"}}, "per_class": {name: …}}: fractions of 1, None of no rows
    """
    ranked, labels = ranked[labels >= 0], labels[labels >= 0]
    hits = ranked[:, :5] == labels[:, None]
    top1, top5 = hits[:, 0], hits.any(axis=1)

    def of(rows) -> dict:
        n = int(np.count_nonzero(rows))
        return {"n": n, "top1": float(top1[rows].mean()) if n else None, "top5": float(top5[rows].mean()) if n else None}

    group_of_row = np.asarray(groups)[labels]
    return {**of(np.ones(len(labels), bool)),
            "groups": {str(group): of(group_of_row == group) for group in dict.fromkeys(groups)},
            "per_class": {str(name): of(labels == label) for label, name in enumerate(names)}}


def write_json(path: Path, content: dict) -> None:
    """Write `content` as readable JSON, whole or not at all."""
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
