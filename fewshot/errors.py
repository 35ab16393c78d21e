"""The one exception that fewshot raises for a user's mistake."""

from jclip import bounded


class TaskError(ValueError):
    """Data, lists, prompts or files between the stages that cannot be used; the message is one line."""

    def __init__(self, message: str):
        super().__init__(bounded.one_line(message))
