"""What looks wrong in the data: labels, classes that do not hang together, names that CLIP does not know.

Everything is computed from features; photographs are not opened. Only training photographs (the shots and the
validation photographs) are judged by their labels; labels of test photographs are never looked at. Near copies have
their own file, copies.py.

Letters: C classes, R training photographs, D feature width. Features are float32 rows of unit L2 norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support
from fewshot.rows import chunks, class_sums, softmax, unit_rows
from methods.blend import PRIOR_WEIGHT, fit_weights

from .metrics import top_classes
from .space import around

MAX_LISTED = 100  # findings of a kind
SHOWN_SHOTS = 4  # of each of the two classes that are compared
MAX_ELEMENTS = 2**22  # of the matrices of a chunk: 16 MB each
# Of a class's text in its prototype, beside a weight of 1 for each photograph. On Stanford Cars and SUN397 (training
# rows, 3 % of them mislabelled), 0.5 and 1 find the same; a ridge regression and a cache find a little less.
TEXT_WEIGHT = 0.5
MAX_FITTED = 2**23  # elements of the logits on which the two weights are fitted
# Another class must be so many times as likely as the label; the findings are ordered by these odds. Odds beside the
# usual ones of the class, or divided by their spread, the label's or the other's probability alone, and their products
# find no more of the mislabelled (cars_4, cars_8, sun397_4; five draws).
MIN_ODDS = 20.0
MAX_UNKNOWN = 0.05  # zero-shot top-1 up to which a name counts as not known
SAME = 1e-6  # difference of similarities that may be due to rounding
SPREAD = 3.0  # median absolute deviations below the median from which a class hangs together unusually badly


class Training(NamedTuple):
    """The labelled training photographs: the shots, then the validation photographs."""

    features: np.ndarray  # float32 (R, D)
    labels: np.ndarray  # int64 (R,)
    names: np.ndarray  # (R,)
    sets: np.ndarray  # (R,) "shots" or "val"
    rows: np.ndarray  # int64 (R,), their rows in support.npz or val.npz

    def at(self, index: int) -> dict:
        """Return what identifies a training photograph."""
        return {
            "set": str(self.sets[index]),
            "row": int(self.rows[index]),
            "name": str(self.names[index]),
            "label": int(self.labels[index]),
        }


def training(support: Support, val: Split | None) -> Training:
    """Return the training photographs; of a shot, the plain photograph counts and not its views."""
    shots = len(support.labels)
    parts = [(support.features[:, 0], support.labels, support.names, np.repeat("shots", shots), np.arange(shots))]
    if val is not None:
        rows = np.flatnonzero(val.labels >= 0)
        parts.append((val.features[rows], val.labels[rows], val.names[rows], np.repeat("val", len(rows)), rows))
    return Training(*(np.concatenate(arrays) for arrays in zip(*parts)))


# ---- labels ----


def labels(train: Training, adapter: Adapter) -> list[dict]:
    """Return the training photographs whose label disagrees with what all others teach, the clearest first.

    Each photograph is left out in turn: it is compared with the mean of the other photographs of its class, with the
    means of the other classes, and with the texts. Two weights, for means and texts, are fitted to all photographs.

    Returns
    -------
    list of dict
        What `Training.at` gives, "predicted", "p_predicted" and "p_label", and the other shots of both classes that
        are nearest, as [[row, similarity]] in "near_predicted" and "near_label"; at most MAX_LISTED.
    """
    if len(set(train.labels.tolist())) < 2:
        return []
    found, weights = [], _weights(train, adapter)
    for rows, logits in _left_out(train, adapter, np.arange(len(train.labels))):
        probabilities = softmax(np.tensordot(weights, logits, 1))
        own = probabilities[np.arange(len(rows)), train.labels[rows]]
        predicted = probabilities.argmax(axis=1)
        best = probabilities[np.arange(len(rows)), predicted]
        odds = np.log(best) - np.log(np.maximum(own, 1e-300))
        for i in np.flatnonzero(odds > np.log(MIN_ODDS)):
            found.append((float(odds[i]), int(rows[i]), int(predicted[i]), float(best[i]), float(own[i])))
    found.sort(key=lambda finding: (-finding[0], finding[1]))
    return [
        {
            **train.at(row),
            "predicted": predicted,
            "p_predicted": best,
            "p_label": own,
            "near_predicted": _nearest_shots(train, row, predicted),
            "near_label": _nearest_shots(train, row, int(train.labels[row])),
        }
        for _, row, predicted, best, own in found[:MAX_LISTED]
    ]


def _nearest_shots(train: Training, row: int, label: int) -> list[list]:
    """Return [row, similarity] of the shots of a class that are nearest to a photograph, without itself."""
    shots = np.flatnonzero((train.labels == label) & (train.sets == "shots"))
    shots = shots[shots != row]
    similarities = train.features[shots] @ train.features[row]
    best = np.argsort(-similarities, kind="stable")[:SHOWN_SHOTS]
    return [[int(train.rows[shots[i]]), float(f"{similarities[i]:.4g}")] for i in best]


def _weights(train: Training, adapter: Adapter) -> np.ndarray:
    n = max(1, MAX_FITTED // len(adapter.names))
    rows = np.linspace(0, len(train.labels) - 1, min(n, len(train.labels))).astype(int)
    logits = np.concatenate([part for _, part in _left_out(train, adapter, rows)], axis=1)
    return fit_weights(logits, train.labels[rows], np.array([PRIOR_WEIGHT, PRIOR_WEIGHT]))


def _left_out(train: Training, adapter: Adapter, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and their logits (2, n, C): by the texts, and by prototypes of which the row itself is no part."""
    sums = class_sums(train.features, train.labels, len(adapter.names)) + TEXT_WEIGHT * adapter.text
    prototypes = unit_rows(sums)
    for chunk in chunks(len(rows), len(adapter.names), MAX_ELEMENTS):
        chosen = rows[chunk]
        features, own = train.features[chosen], train.labels[chosen]
        by_photos = features @ prototypes.T
        without = unit_rows(sums[own] - features)
        by_photos[np.arange(len(chosen)), own] = np.einsum("rd,rd->r", features, without)
        yield chosen, np.stack([features @ adapter.text.T, by_photos]) * adapter.scale


# ---- classes and names ----


def classes(train: Training, adapter: Adapter) -> list[dict]:
    """Return how well the photographs of each class hang together: the odd ones first, then the worst.

    Returns
    -------
    list of dict
        "class", "n", "cohesion" (mean similarity of two photographs of the class, around the mean of all), "nearest"
        and "similarity" (the class whose photographs are nearest, and the mean similarity to them), "odd" (whether the
        cohesion is unusually low); classes with one photograph are left out, at most MAX_LISTED.
    """
    n_classes = len(adapter.names)
    counts = np.bincount(train.labels, minlength=n_classes)
    if not (counts > 1).any():
        return []
    placed = around(train.features, train.features.mean(axis=0))
    sums = class_sums(placed, train.labels, n_classes)
    judged = np.flatnonzero(counts > 1)
    cohesion = ((sums[judged] ** 2).sum(axis=1) - counts[judged]) / (counts[judged] * (counts[judged] - 1))
    median = np.median(cohesion)
    limit = median - SPREAD * np.median(np.abs(cohesion - median))
    means = sums / np.maximum(counts, 1)[:, None]
    found = []
    for i in np.argsort(cohesion, kind="stable"):
        label = judged[i]
        between = means @ means[label]
        between[(counts == 0) | (np.arange(n_classes) == label)] = -np.inf
        nearest = int(between.argmax())
        has_other = bool(np.isfinite(between[nearest]))
        found.append(
            {
                "class": int(label),
                "n": int(counts[label]),
                "cohesion": float(cohesion[i]),
                "nearest": nearest if has_other else None,
                "similarity": float(between[nearest]) if has_other else None,
                "odd": bool(cohesion[i] < limit or (has_other and cohesion[i] < between[nearest])),
            }
        )
    return sorted(found, key=lambda entry: not entry["odd"])[:MAX_LISTED]


def names(train: Training, adapter: Adapter) -> list[dict]:
    """Return the classes whose training photographs the texts alone hardly ever recognise, the least known first.

    Returns
    -------
    list of dict
        "class", "n", "top1" (at most MAX_UNKNOWN), "rank" (the median rank of the class by its text, 1 is best,
        with equal texts the middle of their ranks),
        "taken_for" (the class that the texts answer most often); at most MAX_LISTED.
    """
    ranks, answers = np.empty(len(train.labels)), np.empty(len(train.labels), np.int64)
    for rows in chunks(len(train.labels), len(adapter.names), MAX_ELEMENTS):
        similarities = train.features[rows] @ adapter.text.T
        own = similarities[np.arange(len(similarities)), train.labels[rows]]
        lead = similarities - own[:, None]
        higher, equal = (lead > SAME).sum(axis=1), (np.abs(lead) <= SAME).sum(axis=1)  # equal: itself among them
        ranks[rows] = higher + (equal + 1) / 2  # among equal texts, the middle rank
        answers[rows] = top_classes(similarities, 1)[:, 0]
    found = []
    for label in np.unique(train.labels):
        of_class = train.labels == label
        top1 = float((answers[of_class] == label).mean())
        if top1 <= MAX_UNKNOWN:
            taken_for = int(np.bincount(answers[of_class]).argmax())
            rank = float(np.median(ranks[of_class]))
            found.append(
                {"class": int(label), "n": int(of_class.sum()), "top1": top1, "rank": rank, "taken_for": taken_for}
            )
    return sorted(found, key=lambda finding: (-finding["rank"], finding["class"]))[:MAX_LISTED]
