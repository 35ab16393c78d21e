"""The exception that fewshot raises for user errors, and a helper that shortens lists in messages."""

from __future__ import annotations

from collections.abc import Sequence

from jclip import bounded

MAX_LINES = 5  # lines of a list that a message shows


class TaskError(ValueError):
    """Raised for errors that the user can correct; the message is one line."""

    def __init__(self, message: str):
        super().__init__(bounded.one_line(message))


def preview(lines: Sequence[str]) -> list[str]:
    """Return the first MAX_LINES lines of a list, and "…" if there are more."""
    return [*lines[:MAX_LINES], *["…"] * (len(lines) > MAX_LINES)]
