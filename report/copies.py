"""Near copies: among training photographs of different classes, and between training and test, where figures lie.

By features, two photographs are near copies if they are far nearer to each other than photographs usually are. That
finds copies with a good CLIP; a small one tells a copy from another photograph of the same kind badly. Where the
photographs can be opened they are also compared by their pixels (signatures.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Split
from fewshot.rows import chunks

from . import signatures
from .signatures import Small
from .space import around, distance
from .suspects import MAX_ELEMENTS, MAX_LISTED, Training

# Two photographs are near copies if they are so much nearer to each other than a photograph usually is to its nearest
# neighbour among the training photographs.
COPY_RATIO = 0.35
MAX_REFERENCE = 2000  # photographs on which the usual distance is measured
# Product of two whole pictures from which they are compared with margins cut off: 3 % cut off at two or four sides left
# 0.76 of photographs, and of one drawing in 700 less than this. The copy was always among the nearest NEAREST.
MIN_PLAIN = 0.4
NEAREST = 3  # others of each photograph, by pixels, that are compared with margins cut off
KINDS = ("train_and_test", "across_classes")


class Pixels(NamedTuple):
    """The photographs that were opened; rows are those of the test photographs, and indices into `Training`."""

    test: Small
    train: Small


def find(train: Training, test: Split, pixels: Pixels | None = None) -> dict:
    """Return near copies among training photographs of different classes, and between training and test.

    Returns
    -------
    dict
        "across_classes" and "train_and_test": lists of {"first": …, "second": …, "found_by", "similarity", "ratio"},
        at most MAX_LISTED each, those that pixels show first, then the nearest. "found_by" lists "pixels" and
        "features"; "ratio" is the distance of the features relative to the usual one; pairs of opened photographs have
        "pixels", the product of their signatures. "nearest" holds for each of both the nearest pair where nothing was
        found, or None; "compared" the number of photographs.
    """
    opened = pixels or Pixels(signatures.read({}), signatures.read({}))
    result: dict = {
        "compared": {
            "train": len(train.labels),
            "test": len(test.names),
            "opened_train": len(opened.train.rows),
            "opened_test": len(opened.test.rows),
        },
        "nearest": dict.fromkeys(KINDS),
        **{kind: [] for kind in KINDS},
    }
    if len(train.labels) < 2:
        return result
    for kind, small in zip(KINDS, opened):
        labels = train.labels if kind == "across_classes" else None
        seen = _by_pixels(small, opened.train, labels)
        result[kind], result["nearest"][kind] = _compare(train, train if labels is not None else test, labels, seen)
    return result


def _compare(
    train: Training, mine: Training | Split, labels: np.ndarray | None, seen: dict[tuple[int, int], float]
) -> tuple[list[dict], dict | None]:
    """Return the copies among the rows of mine and train, and the nearest pair where there are none."""
    mean = train.features.mean(axis=0)
    rows, placed = around(mine.features, mean), around(train.features, mean)
    usual = max(_usual_distance(placed), 1e-12)
    near = _nearest(rows, placed, usual, labels)

    def described(i: int, j: int) -> dict:
        first = _at(mine, i) if labels is None else train.at(i)
        similarity = float(mine.features[i] @ train.features[j])
        ratio = float(distance(rows[i] @ placed[j]) / usual)
        return _pair(first, train.at(j), similarity, ratio, seen.get((i, j)))

    found = {pair for pair, ratio in near.items() if ratio < COPY_RATIO}
    found |= {pair for pair, product in seen.items() if product >= signatures.LIMIT}
    if found or not (near or seen):
        ordered = sorted(found, key=lambda pair: (-max(seen.get(pair, 0), signatures.LIMIT), near.get(pair, 1), pair))
        return [described(*pair) for pair in ordered[:MAX_LISTED]], None
    return [], described(*(max(seen, key=seen.__getitem__) if seen else min(near, key=near.__getitem__)))


def _pair(first: dict, second: dict, similarity: float, ratio: float, product: float | None) -> dict:
    found_by = ["pixels"] * (product is not None and product >= signatures.LIMIT) + ["features"] * (ratio < COPY_RATIO)
    pair = {"first": first, "second": second, "found_by": found_by, "similarity": similarity, "ratio": ratio}
    return pair if product is None else {**pair, "pixels": round(product, 4)}


def _at(test: Split, row: int) -> dict:
    return {"set": "test", "row": int(row), "name": str(test.names[row]), "label": int(test.labels[row])}


# ---- by features ----


def _usual_distance(placed: np.ndarray) -> float:
    """Return the median distance of training photographs to their nearest neighbour, over some of them."""
    some = np.linspace(0, len(placed) - 1, min(MAX_REFERENCE, len(placed))).astype(int)
    nearest = np.full(len(some), -1.0)
    for rows in chunks(len(some), len(placed), MAX_ELEMENTS):
        similarities = placed[some[rows]] @ placed.T
        similarities[np.arange(len(similarities)), some[rows]] = -1
        nearest[rows] = similarities.max(axis=1)
    return float(np.median(distance(nearest)))


def _nearest(
    rows: np.ndarray, others: np.ndarray, usual: float, labels: np.ndarray | None
) -> dict[tuple[int, int], float]:
    """Return {(row, other): ratio} of each row's nearest other: those below COPY_RATIO, and the least one.

    With `labels`, rows and others are the same photographs, and only pairs of different labels count, once.
    """
    pairs: dict[tuple[int, int], float] = {}
    for chunk in chunks(len(rows), len(others), MAX_ELEMENTS):
        similarities = rows[chunk] @ others.T
        if labels is not None:
            similarities[labels[chunk][:, None] == labels] = -np.inf
        nearest = similarities.argmax(axis=1)
        highest = similarities[np.arange(len(nearest)), nearest]
        ratios = np.where(np.isfinite(highest), distance(np.maximum(highest, -1)) / usual, np.inf)
        for i in {*np.flatnonzero(ratios < COPY_RATIO), int(ratios.argmin())}:
            if np.isfinite(ratios[i]):
                pairs[_ordered(int(chunk.start + i), int(nearest[i]), labels)] = float(ratios[i])
    return pairs


def _ordered(first: int, second: int, labels: np.ndarray | None) -> tuple[int, int]:
    return (first, second) if labels is None else (min(first, second), max(first, second))


# ---- by pixels ----


def _by_pixels(rows: Small, others: Small, labels: np.ndarray | None) -> dict[tuple[int, int], float]:
    """Return {(row, other): product} of the nearest others of each photograph by their signatures.

    With `labels`, rows and others are the same photographs, and only pairs of different labels count, once.
    """
    found: dict[tuple[int, int], float] = {}
    if not len(rows.rows) or not len(others.rows):
        return found
    plain = np.concatenate([signed for _, signed in _signed(others)])
    for chunk, mine in _signed(rows):
        products = np.maximum(mine @ plain.T, signatures.mirrored(mine) @ plain.T)
        if labels is not None:
            products[labels[rows.rows[chunk]][:, None] == labels[others.rows]] = -1
        nearest = np.argsort(-products, axis=1, kind="stable")[:, :NEAREST]
        best = np.take_along_axis(products, nearest, axis=1)
        for i, column in zip(*np.nonzero(best >= MIN_PLAIN)):
            pair = int(chunk[i]), int(nearest[i, column])
            found[pair] = float(best[i, column])
    pairs = np.array(list(found), np.int64).reshape(-1, 2)
    signed = np.concatenate([signed for _, signed in _signed(rows)]) if labels is None else plain
    products = np.maximum(_cut(rows, pairs[:, 0], plain, pairs[:, 1]), _cut(others, pairs[:, 1], signed, pairs[:, 0]))
    return {
        _ordered(int(rows.rows[i]), int(others.rows[j]), labels): float(product)
        for (i, j), product in zip(pairs, products)
    }


def _cut(small: Small, chosen: np.ndarray, plain: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the highest product of each chosen photograph, margins cut off, with another's signature, or mirrored."""
    best = np.full(len(chosen), -1, np.float32)
    order = np.argsort(chosen, kind="stable")
    for chunk in chunks(len(order), 4 * len(signatures.MARGINS) * signatures.SIDE**2, MAX_ELEMENTS):
        of_chunk = order[chunk]
        distinct, position = np.unique(chosen[of_chunk], return_inverse=True)
        cut = [signatures.signatures(small.pixels[distinct], margins) for margins in signatures.MARGINS]
        wanted = plain[others[of_chunk]]
        for signed in cut:
            for other in (wanted, signatures.mirrored(wanted)):
                product = np.einsum("nd,nd->n", signed[position], other)
                best[of_chunk] = np.maximum(best[of_chunk], product)
    return best


def _signed(small: Small) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for chunk in chunks(len(small.rows), 4 * signatures.READ_SIDE**2, MAX_ELEMENTS):
        indices = np.arange(len(small.rows))[chunk]
        yield indices, signatures.signatures(small.pixels[indices])
