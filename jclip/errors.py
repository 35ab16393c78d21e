"""The exceptions that jclip raises for a user's mistake."""

from . import bounded


class ClipError(RuntimeError):
    """A file, text, image or device cannot be used; the message is one line.

    It is a RuntimeError because OpenAI's `clip` raises that for an unknown model or an over-long text.
    """

    def __init__(self, message: str):
        super().__init__(bounded.one_line(message))


class TooLong(ClipError):
    """A text has more tokens than fit into the context.

    Attributes
    ----------
    n_tokens : int
        Tokens of the text, with start and end token.
    context_length : int
    """

    def __init__(self, text: str, n_tokens: int, context_length: int):
        super().__init__(
            f"text of {n_tokens} tokens is too long for a context of {context_length}: {text!r}; "
            "shorten it or pass truncate=True"
        )
        self.n_tokens, self.context_length = n_tokens, context_length


class Unreadable(ClipError):
    """An image cannot be read; the message says why.

    Code that reads many images may catch it and go on with the others.
    """
