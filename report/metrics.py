"""Metrics of predictions: top-1 and top-5 accuracy by group and class, calibration error, and confused classes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fewshot.errors import TaskError
from fewshot.rows import softmax
from jclip import bounded
from jclip.files import atomic_write
from jclip.paths import expand

BINS = 15  # bins of confidence, as in Guo et al.
MAX_PAIRS = 20  # pairs of confused classes in metrics.json
SPLITS = ("val", "test")
OF_TEST = ("test", "transductive", "test_views")  # what predict.py adds to metrics.json
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # Excel reads the wide signs like the others


def top_classes(logits: np.ndarray, k: int = 5) -> np.ndarray:
    """Return the k likeliest classes of each row, best first; with equal logits, the lower label comes first.

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
    kth_best = -np.partition(-logits, k - 1, axis=1)[:, k - 1 : k]
    ranked = np.empty((len(logits), k), np.int64)
    for row, (values, threshold) in enumerate(zip(logits, kth_best)):
        candidates = np.flatnonzero(values >= threshold)  # by label, an order that the stable sort keeps for ties
        ranked[row] = candidates[np.argsort(-values[candidates], kind="stable")[:k]]
    return ranked


def score(logits: np.ndarray, labels: np.ndarray, names: Sequence[str], groups: Sequence[str]) -> dict:
    """Return the metrics of the labelled rows.

    Parameters
    ----------
    logits : float array of shape (M, C)
    labels : int array of shape (M,)
        -1 for rows without a label, which are ignored.
    names, groups : sequences of str, length C
        Name and group of each class.

    Returns
    -------
    dict
        {"n", "top1", "top5", "calibration_error", "groups": {group: {"n", "top1", "top5"}}, "per_class": {name: …},
        "confused": […]}. Accuracies are from 0 to 1, or None without rows.
    """
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    ranked = top_classes(logits)
    hits = ranked == labels[:, None]
    top1, top5 = hits[:, 0], hits.any(axis=1)

    def accuracy(rows) -> dict:
        n = int(np.count_nonzero(rows))
        return {
            "n": n,
            "top1": float(top1[rows].mean()) if n else None,
            "top5": float(top5[rows].mean()) if n else None,
        }

    group_of_row = np.asarray(groups)[labels]
    return {
        **accuracy(np.ones(len(labels), bool)),
        "calibration_error": calibration_error(logits, labels),
        "groups": {str(group): accuracy(group_of_row == group) for group in dict.fromkeys(groups)},
        "per_class": {str(name): accuracy(labels == label) for label, name in enumerate(names)},
        "confused": confused_pairs(ranked[:, 0], labels, names),
    }


def calibration_error(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the expected calibration error of the top-1 prediction over BINS bins of its probability.

    Guo et al. 2017, arXiv:1706.04599, equation 3.

    Parameters
    ----------
    logits : float array of shape (M, C)
    labels : int array of shape (M,)

    Returns
    -------
    float, or None without rows
    """
    if not len(labels):
        return None
    bins = reliability(logits, labels)
    return float(np.abs(bins.confidence - bins.correct).sum() / len(labels))


class Reliability(NamedTuple):
    """Sums over the rows of each bin of confidence, the probability of the top-1 prediction; arrays (BINS,)."""

    n: np.ndarray  # rows
    confidence: np.ndarray  # sum of the confidences
    correct: np.ndarray  # correct rows


def reliability(logits: np.ndarray, labels: np.ndarray) -> Reliability:
    """Return the bins of a reliability diagram; `labels` (M,) are all known."""
    probabilities = softmax(logits)
    predicted = probabilities.argmax(axis=1)
    confidence, correct = probabilities[np.arange(len(labels)), predicted], predicted == labels
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return Reliability(*(np.bincount(bins, weights, BINS) for weights in (None, confidence, correct)))


def confused_pairs(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict]:
    """Return the MAX_PAIRS pairs of classes that are confused most often, as {"is", "taken_for", "n"}.

    Parameters
    ----------
    predicted, labels : int arrays of shape (M,)
        The predicted and the true class of each row.
    names : sequence of str
        The class names.
    """
    wrong = predicted != labels
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
    return [
        {"is": str(names[pairs[0, i]]), "taken_for": str(names[pairs[1, i]]), "n": int(counts[i])}
        for i in np.argsort(-counts, kind="stable")[:MAX_PAIRS]
    ]


def write(folder: Path, results: dict) -> None:
    """Write the results to metrics.json, and their accuracies as a table to metrics.csv, each atomically.

    The table is UTF-8 with a byte order mark, without which Excel takes it for another encoding. Names that a
    spreadsheet would compute get an apostrophe in front (`spreadsheet_text`).
    """
    write_json(Path(folder) / "metrics.json", results)
    with atomic_write(Path(folder) / "metrics.csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("split", "method", "scope", "name", "n", "top1", "top5"))
        for split in SPLITS:
            for scope, name, row in _table_rows(results.get(split, {})):
                scores = row["n"], row["top1"], row["top5"]
                table.writerow((split, results.get("method", ""), scope, spreadsheet_text(name), *scores))
        text.flush()
        text.detach()


def spreadsheet_text(name: str) -> str:
    """Return a name that a spreadsheet shows and does not compute: class names may come from a stranger's data set."""
    return f"'{name}" if name.startswith(FORMULA_STARTS) else name


def _table_rows(scores: dict) -> Iterator[tuple[str, str, dict]]:
    """Yield (scope, name, scores) for all rows, each group and each class."""
    if scores:
        yield "all", "", scores
        yield from (("group", name, row) for name, row in scores["groups"].items())
        yield from (("class", name, row) for name, row in scores["per_class"].items())


def record_test(
    folder: Path, scores: dict | None, transductive: dict | None = None, views: Sequence[str] | None = None
) -> None:
    """Add what predict.py did to the metrics.json and metrics.csv that training wrote.

    Parameters
    ----------
    folder : Path
    scores : dict or None
        Those of the test rows, as `score` returns them; None if no label is known. Older ones are replaced or removed.
    transductive : dict or None
        How the test rows helped to classify each other; None if they did not.
    views : sequence of str or None
        The views of which a test row is the mean; None if it is the plain photograph.

    Raises
    ------
    TaskError
        If metrics.json is damaged.
    """
    recorded = _read(folder)
    new = dict(zip(OF_TEST, (scores, transductive, views)))
    kept = {key: value for key, value in recorded.items() if key not in new}
    results = {**kept, **{key: value for key, value in new.items() if value is not None}}
    if results != recorded:
        write(folder, results)


def has_test(folder: Path) -> bool:
    """Return whether metrics.json holds something that `record_test` has added; one that cannot be read does not."""
    try:
        return not _read(folder).keys().isdisjoint(OF_TEST)
    except (TaskError, OSError):
        return False


def _read(folder: Path) -> dict:
    path = expand(folder) / "metrics.json"
    try:
        recorded = bounded.json_value(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(recorded, dict):
            raise ValueError(f"holds a {type(recorded).__name__}, expected an object")
    except ValueError as error:
        raise TaskError(f"{path}: {error}; run train_adapter.py again") from None
    return recorded


def write_json(path: Path, content: dict) -> None:
    """Write indented JSON atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
