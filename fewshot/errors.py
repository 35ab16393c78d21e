"""The one exception that fewshot raises for a user's mistake, and long lists in messages."""

from __future__ import annotations

from collections.abc import Sequence

from jclip import bounded

FIRST = 5  # lines of a long list that a message shows


class TaskError(ValueError):
    """Data, lists, prompts or files between the stages that cannot be used; the message is one line."""

    def __init__(self, message: str):
        super().__init__(bounded.one_line(message))


def preview(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list for a message, and "…" where there are more."""
    return [*lines[:FIRST], *["…"] * (len(lines) > FIRST)]
