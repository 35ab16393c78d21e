"""OpenAI's name for the tokenizer: `SimpleTokenizer`, with encode, decode, encoder and decoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .tokenizer import END_OF_WORD, VOCABULARY, BytePairEncoder, byte_letters


class SimpleTokenizer(BytePairEncoder):
    """Turns text into token ids without start and end token, and ids back into text.

    Parameters
    ----------
    bpe_path : str or Path
        The vocabulary, gzipped; by default OpenAI's.

    Attributes
    ----------
    encoder : dict of str to int, from each symbol to its token id
    decoder : dict of int to str, the other way round
    """

    def __init__(self, bpe_path: Path | str = VOCABULARY):
        super().__init__(Path(bpe_path))
        self.encoder = self.ids
        self.decoder = {number: symbol for symbol, number in self.ids.items()}

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids: lower case, a space after each word; bytes that are no UTF-8 become U+FFFD."""
        bytes_of = {letter: byte for byte, letter in byte_letters().items()}
        text = "".join(self.decoder[int(token)] for token in tokens)
        return bytearray(bytes_of[letter] for letter in text).decode("utf-8", "replace").replace(END_OF_WORD, " ")
