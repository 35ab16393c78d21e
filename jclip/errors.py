"""The exceptions that jclip raises for a user's mistake."""

from . import bounded


class ClipError(RuntimeError):
    """A file, text, image or device cannot be used; the message is one line.

    It is a RuntimeError because OpenAI's `clip` raises that for an unknown model or an over-long text.
    """

    def __init__(self, message: str):
        super().__init__(bounded.one_line(message))


class Unreadable(ClipError):
    """An image cannot be read; the message says why.

    Code that reads many images may catch it and go on with the others.
    """
