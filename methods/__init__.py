"""How a classifier is learned from features: text, shots and validation rows in, an Outcome with an Adapter out.

METHODS is the registry; a method's code is imported when it is trained. numpy and scipy; Jittor where gradients are
wanted. A new method is a function of (text, support, val, settings) and a line in METHODS.

Letters: C classes, N shots, V views of each, D feature width, M rows. Features are float32 rows of unit L2 norm.
"""

from __future__ import annotations

from importlib import import_module
from typing import Callable, NamedTuple

from fewshot.artifacts import Split, Support, Text
from fewshot.errors import TaskError

from .outcome import Outcome, Settings

__all__ = ["METHODS", "Method", "Outcome", "Settings", "methods_with", "train"]


class Method(NamedTuple):
    """An entry of the registry."""

    path: str  # "module:function"; the function takes (text, support, val, settings) and returns an Outcome
    options: tuple[str, ...] = ()  # what it takes beyond the seed: "epochs" and "lr" of Settings; "refit"
    needs_shots: bool = True

    @property
    def function(self) -> Callable[[Text, Support, Split | None, Settings], Outcome]:
        module, name = self.path.split(":")
        return getattr(import_module(module), name)


METHODS = {
    "blend": Method("methods.blend:blend", options=("refit",)),
    "zero-shot": Method("methods.tip_adapter:zero_shot", needs_shots=False),
    "tip": Method("methods.tip_adapter:tip"),
    "tip-f": Method("methods.tip_adapter:tip_f", options=("epochs", "lr")),
    "gda": Method("methods.published:gda"),
    "taskres": Method("methods.published:taskres"),
    "clap": Method("methods.published:clap"),
    "proker": Method("methods.published:proker"),
}


def methods_with(option: str) -> list[str]:
    """Names of the methods that take an option."""
    return [name for name, method in METHODS.items() if option in method.options]


def train(method: str, text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Learn a classifier.

    Parameters
    ----------
    method : str
        A key of METHODS.
    text : Text
    support : Support
        The shots; classes may have none.
    val : Split or None
        Rows on which settings are chosen; without labelled rows, shots are left out in turn.
    settings : Settings
        Of which a method takes what it needs.

    Raises
    ------
    TaskError
        Where the method needs shots and there are none, or where training diverges.
    ClipError
        Where the device cannot be used.
    """
    if METHODS[method].needs_shots and not len(support.labels):
        raise TaskError(
            f"there are no shots for {method} to learn from; give some to extract_feature.py, "
            "or choose --method zero-shot, which needs none"
        )
    return METHODS[method].function(text, support, val, settings)
