"""Methods that learn a classifier: they take text, shots and validation rows and return an Outcome with an Adapter.

METHODS is the registry; the code of a method is imported when the method is trained. blend, tip-f, taskres and clap
need Jittor. To add a method, write a function of (text, support, val, settings) and list it in METHODS.

Letters: C classes, N shots, V views of each shot, D feature width, M rows. Features are float32 rows of unit L2 norm.
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

    target: str  # "module:function"; the function takes (text, support, val, settings) and returns an Outcome
    options: tuple[str, ...] = ()  # options beyond the seed: "epochs" and "lr" (fields of Settings), "refit"
    needs_shots: bool = True

    @property
    def function(self) -> Callable[[Text, Support, Split | None, Settings], Outcome]:
        module, name = self.target.split(":")
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
    """Return the names of the methods that take an option."""
    return [name for name, method in METHODS.items() if option in method.options]


def train(method: str, text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Learn a classifier with a method and return its Outcome.

    Parameters
    ----------
    method : str
        A key of METHODS.
    text : Text
    support : Support
        The shots; a class may have none.
    val : Split or None
        Rows on which settings are chosen. Without labelled rows, cross-validation over the shots replaces them.
    settings : Settings
        A method reads only the fields it needs.

    Raises
    ------
    TaskError
        If the method needs shots and there are none, or if training diverges.
    ClipError
        If the device cannot be used.
    """
    if METHODS[method].needs_shots and not len(support.labels):
        raise TaskError(
            f"there are no shots for {method} to learn from; give some to extract_feature.py, "
            "or choose --method zero-shot, which needs none"
        )
    return METHODS[method].function(text, support, val, settings)
