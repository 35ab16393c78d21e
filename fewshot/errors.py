"""The one exception that fewshot raises for a user's mistake."""


class TaskError(ValueError):
    """Data, lists, prompts or files between the stages that cannot be used; the message is one line."""
