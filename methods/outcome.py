"""What goes into every method beside the task, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

from fewshot.artifacts import Adapter, Split, Support, Text


@dataclass(frozen=True)
class Settings:
    """What a user may set."""

    epochs: int = 20
    lr: float = 1e-3
    seed: int = 1
    device: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """What a method learned, and what it chose on the way.

    Keys of the dicts are the names that metrics.json gives the values; a method fills those that it has something for.
    """

    adapter: Adapter
    how: str  # on which rows choices were made, in words
    settings: dict[str, float] = field(default_factory=dict)  # chosen: "alpha", "beta", "lambda", "epoch"
    figures: dict[str, float] = field(default_factory=dict)  # of those rows: "rows", "top1", "zero_shot_top1", …
    weights: dict[str, float] = field(default_factory=dict)  # of the experts of a blend
    new_classes: dict[str, float] = field(default_factory=dict)  # how classes without shots are treated
    # The same choices, learned from the labelled validation rows as well: refit(text, support, val)
    refit: Callable[[Text, Support, Split], Adapter] | None = None

    def record(self) -> dict:
        """The choices as metrics.json and the adapter's meta keep them."""
        weights = {"weights": self.weights} if self.weights else {}
        return {"how": self.how, **self.settings, **self.figures, **weights, **self.new_classes}
