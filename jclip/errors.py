"""What jclip raises for a user's mistake."""

from . import bounded


class ClipError(RuntimeError):
    """A file, text, picture or device that jclip cannot use; the message is one line.

    A RuntimeError, because that is what OpenAI's `clip` raises for an unknown model or an over-long text.
    """

    def __init__(self, message: str):
        super().__init__(bounded.one_line(message))


class Unreadable(ClipError):
    """An image that cannot be read; the message is the cause. Where many are read, it need not end the work on the
    others."""
