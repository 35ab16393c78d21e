"""Figures of answers: top-1 and top-5 by split, group and class, calibration, and which classes are confused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fewshot.errors import TaskError
from fewshot.files import written_whole
from fewshot.rows import softmax
from jclip import bounded

BINS = 15  # ranges of probability, as in Guo et al.
PAIRS = 20  # of confused classes in metrics.json
SPLITS = ("val", "test")


def top_classes(logits: np.ndarray, k: int = 5) -> np.ndarray:
    """Return the k likeliest classes of each row, best first; of equal logits the lower label comes first.

    Parameters
    ----------
    logits : array of shape (M, C)
    k : int

    Returns
    -------
    int64 array of shape (M, min(k, C))
    """
    k = min(k, logits.shape[1])
    if 4 * k >= logits.shape[1]:
        return np.argsort(-logits, axis=1, kind="stable")[:, :k]
    least = -np.partition(-logits, k - 1, axis=1)[:, k - 1 : k]  # the k-th best of each row
    ranked = np.empty((len(logits), k), np.int64)
    for row, (values, threshold) in enumerate(zip(logits, least)):
        candidates = np.flatnonzero(
            values >= threshold
        )  # in order of their labels, so that the stable sort keeps it among equals
        ranked[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return ranked


def score(logits: np.ndarray, labels: np.ndarray, names: Sequence[str], groups: Sequence[str]) -> dict:
    """Compute the figures of the rows whose label is known.

    Parameters
    ----------
    logits : float array of shape (M, C)
    labels : int array of shape (M,)
        -1 where the class is not known.
    names, groups : sequences of str, length C
        Name and group of each class.

    Returns
    -------
    dict
        {"n", "top1", "top5", "calibration_error", "groups": {group: {"n", "top1", "top5"}}, "per_class": {name: …},
        "confused": […]}; fractions of 1, None where there is no row.
    """
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    ranked = top_classes(logits)
    hits = ranked == labels[:, None]
    top1, top5 = hits[:, 0], hits.any(axis=1)

    def of(rows) -> dict:
        n = int(np.count_nonzero(rows))
        return {
            "n": n,
            "top1": float(top1[rows].mean()) if n else None,
            "top5": float(top5[rows].mean()) if n else None,
        }

    group_of_row = np.asarray(groups)[labels]
    return {
        **of(np.ones(len(labels), bool)),
        "calibration_error": calibration_error(logits, labels),
        "groups": {str(group): of(group_of_row == group) for group in dict.fromkeys(groups)},
        "per_class": {str(name): of(labels == label) for label, name in enumerate(names)},
        "confused": confused(ranked[:, 0], labels, names),
    }


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Compute the expected calibration error of the likeliest class over BINS ranges of its probability.

    Guo et al. 2017, arXiv:1706.04599, equation 3.

    Parameters
    ----------
    logits : float array of shape (M, C)
    labels : int array of shape (M,)

    Returns
    -------
    float, or None where there is no row
    """
    if not len(labels):
        return None
    probabilities = softmax(logits)
    first = probabilities.argmax(axis=1)
    confidence, correct = probabilities[np.arange(len(labels)), first], first == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.abs(np.bincount(bins, confidence, BINS) - np.bincount(bins, correct, BINS))
    return float(gaps.sum() / len(labels))


def confused(first: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict]:
    """Return the PAIRS pairs of classes that are confused most often, as {"is", "taken_for", "n"}.

    Parameters
    ----------
    first, labels : int arrays of shape (M,)
        The likeliest class and the true class of each row.
    names : sequence of str
        Of the classes.
    """
    wrong = first != labels
    pairs, counts = np.unique(np.stack([labels[wrong], first[wrong]]), axis=1, return_counts=True)
    return [
        {"is": str(names[pairs[0, i]]), "taken_for": str(names[pairs[1, i]]), "n": int(counts[i])}
        for i in np.argsort(-counts, kind="stable")[:PAIRS]
    ]


def write(folder: Path, figures: dict) -> None:
    """Write figures to metrics.json, and those of splits as a table to metrics.csv, each whole or not at all."""
    write_json(Path(folder) / "metrics.json", figures)
    with written_whole(Path(folder) / "metrics.csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("split", "method", "scope", "name", "n", "top1", "top5"))
        for split in SPLITS:
            for scope, name, row in _rows(figures.get(split, {})):
                table.writerow((split, figures.get("method", ""), scope, name, row["n"], row["top1"], row["top5"]))
        text.flush()
        text.detach()


def _rows(figures: dict) -> Iterator[tuple[str, str, dict]]:
    if figures:
        yield "all", "", figures
        yield from (("group", name, row) for name, row in figures["groups"].items())
        yield from (("class", name, row) for name, row in figures["per_class"].items())


def record_test(folder: Path, figures: dict) -> None:
    """Add the test figures to the metrics.json and metrics.csv that training wrote.

    Raises
    ------
    TaskError
        Where metrics.json is damaged.
    """
    path = folder / "metrics.json"
    try:
        recorded = bounded.json_value(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(recorded, dict):
            raise ValueError(f"holds a {type(recorded).__name__}, expected an object")
    except ValueError as error:
        raise TaskError(f"{path}: {error}; run train_adapter.py again") from None
    write(folder, {**recorded, "test": figures})


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON, whole or not at all."""
    with written_whole(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
