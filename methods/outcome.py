"""The Settings that every method takes, and the Outcome that it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

from fewshot.artifacts import Adapter, Split, Support, Text


@dataclass(frozen=True)
class Settings:
    """The settings that a user may change."""

    epochs: int = 20  # of fine-tuning the keys of tip-f
    lr: float = 1e-3  # the highest learning rate of tip-f
    seed: int = 1  # of all random draws
    device: str = "auto"  # as for jclip.runtime.use


@dataclass(frozen=True)
class Outcome:
    """The adapter that a method learned, and the settings that it chose.

    The dicts have the keys of metrics.json. A method leaves those that do not apply empty.
    """

    adapter: Adapter
    how: str  # how the settings were chosen, as text for the user
    # those chosen or fixed: "alpha", "beta", "lambda", "epoch", "epochs"
    settings: dict[str, float] = field(default_factory=dict)
    # on the validation rows: "rows", "top1", "zero_shot_top1", …
    scores: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)  # one for each expert of a blend
    new_classes: dict[str, float] = field(default_factory=dict)  # number and offsets of classes without shots
    # refit(text, support, val) learns again with the same settings, from the labelled validation rows as well
    refit: Callable[[Text, Support, Split], Adapter] | None = None

    def record(self) -> dict:
        """Return the chosen settings and their scores, for metrics.json and the adapter's meta."""
        weights = {"weights": self.weights} if self.weights else {}
        return {"how": self.how, **self.settings, **self.scores, **weights, **self.new_classes}
