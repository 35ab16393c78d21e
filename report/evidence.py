"""Why a photograph got its answer: the shots that speak for it and for the runner-up, and what the texts alone say.

Letters: C classes, N shots, D feature width, M rows. Features are float32 rows of unit L2 norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Support
from fewshot.rows import chunks, shot_rows, softmax
from tip_adapter_utils import predict_logits

from .metrics import top_classes

SHOWN_CLASSES = 5
SHOWN_SHOTS = 4  # for the answer, and for the runner-up
SHOWN_TEXTS = 3  # classes of the texts alone
MAX_ELEMENTS = 2**22  # of the matrices of a chunk: 16 MB each


class Answer(NamedTuple):
    """An answer and what speaks for it."""

    top: list[tuple[int, float]]  # (class, probability), best first
    text: list[tuple[int, float]]  # the same by the texts alone
    shots: list[list[tuple[int, float]]]  # (shot, strength) for the answer, and for the runner-up, strongest first
    # of its logit over the runner-up's: by the texts, by the cache; None if the adapter is not the sum of these two
    lead: tuple[float, float] | None


class Evidence:
    """Explains the answers of an adapter.

    With a cache, the strength of a shot is its affinity exp(−beta·(1 − f·k)) to the photograph, and the shots of a
    class are ordered by what they add to its logit. Without a cache (`gda`, or `blend` where a cache earned nothing)
    the method has only learned from the shots; there the strength is the cosine similarity f·k of the photograph and
    the shot, which is what the method has seen but not a term of its formula.

    Parameters
    ----------
    adapter : Adapter
    support : Support
        The shots that the adapter was trained on; may be empty.
    """

    def __init__(self, adapter: Adapter, support: Support):
        self.adapter = adapter
        self.has_cache = 0 < len(adapter.keys) == len(support.labels)
        self._keys = adapter.keys if self.has_cache else shot_rows(support.features)
        self._shots_of = [np.flatnonzero(support.labels == label) for label in range(len(adapter.names))]
        shot_classes = np.isin(np.arange(len(adapter.names)), support.labels)
        # a fitted cache (ProKeR) lets every shot speak on every class that has shots
        self._fitted = self.has_cache and (np.count_nonzero(adapter.values[:, shot_classes], axis=1) > 1).any()
        self._adds_to_texts = self.has_cache and np.allclose(adapter.weight, adapter.scale * adapter.text)

    @property
    def kind(self) -> str:
        """Return what the strength of a shot is: "affinity" or "similarity"."""
        return "affinity" if self.has_cache else "similarity"

    def answers(self, features: np.ndarray, logits: np.ndarray) -> Iterator[Answer]:
        """Yield the Answer of each row of features (M, D), from its logits (M, C), which other rows may have changed.

        Memory does not grow with the number of rows.
        """
        for rows in chunks(len(features), len(self._keys) + len(self.adapter.names), MAX_ELEMENTS):
            yield from self._chunk(features[rows], logits[rows])

    def _chunk(self, features: np.ndarray, logits: np.ndarray) -> Iterator[Answer]:
        own = predict_logits(self.adapter, features) if self.has_cache else logits
        by_text = self.adapter.scale * (features @ self.adapter.text.T)
        strengths = features @ self._keys.T
        if self.has_cache:
            strengths = np.exp(-self.adapter.beta * (1 - strengths))
        tops = _with_probabilities(logits, SHOWN_CLASSES), _with_probabilities(by_text, SHOWN_TEXTS)
        for row, (top, text) in enumerate(zip(*tops)):
            compared = [label for label, _ in top[:2]]
            shots = [self._strongest(strengths[row], label) for label in compared]
            yield Answer(top, text, shots, self._lead(own[row], by_text[row], compared))

    def _strongest(self, strengths: np.ndarray, label: int) -> list[tuple[int, float]]:
        shots = np.arange(len(strengths)) if self._fitted else self._shots_of[label]
        added = strengths[shots] * self.adapter.values[shots, label] if self._fitted else strengths[shots]
        best = shots[np.argsort(-added, kind="stable")[:SHOWN_SHOTS]]
        return [(int(shot), float(strengths[shot])) for shot in best]

    def _lead(self, logits: np.ndarray, by_text: np.ndarray, compared: list[int]) -> tuple[float, float] | None:
        if not self._adds_to_texts or len(compared) < 2:
            return None
        answer, other = compared
        by_texts = float(by_text[answer] - by_text[other])
        return by_texts, float(logits[answer] - logits[other]) - by_texts


def _with_probabilities(logits: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    best = top_classes(logits, k)
    probabilities = np.take_along_axis(softmax(logits), best, axis=1)
    return [list(zip(*row)) for row in zip(best.tolist(), probabilities.tolist())]
