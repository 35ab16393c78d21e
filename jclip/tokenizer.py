"""CLIP's byte-pair encoding: turns text into the same token ids as OpenAI's `clip.tokenize`.

Byte-pair encoding over UTF-8 bytes, as in Sennrich et al. (arXiv:1508.07909) and GPT-2. The merges are those of
OpenAI's file `bpe_simple_vocab_16e6.txt.gz`, of which CLIP uses the first 48,894.
"""

from __future__ import annotations

import gzip
import html
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from .errors import ClipError, TooLong

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
CONTEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
# The vocabulary has 256 bytes, the same bytes at the end of a word, the merges and the two special tokens. The file has
# more merges than that.
MERGES = VOCABULARY_SIZE - 2 * 256 - 2
END_OF_WORD = "</w>"


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> np.ndarray:
    """Return the token ids of texts, each between start and end token and padded with zeros.

    Parameters
    ----------
    texts : str or list of str
        One text, or n texts.
    context_length : int
        Columns of the result; OpenAI's models use 77.
    truncate : bool
        Whether an over-long text is cut before its end token, instead of raising.

    Returns
    -------
    array, int32 (n, context_length)

    Raises
    ------
    ClipError
        If a text is not a str; TooLong if one is too long and `truncate` is false.
    """
    rows = [texts] if isinstance(texts, str) else list(texts)
    bpe = _encoder()
    ids = np.zeros((len(rows), context_length), np.int32)
    for row, text in zip(ids, rows):
        if not isinstance(text, str):
            raise ClipError(f"tokenize: expected text, found {type(text).__name__}: {text!r}")
        tokens = [bpe.ids[START], *bpe.encode(text), bpe.ids[END]]
        if len(tokens) > context_length:
            if not truncate:
                raise TooLong(text, len(tokens), context_length)
            tokens = tokens[: context_length - 1] + [bpe.ids[END]]
        row[: len(tokens)] = tokens
    return ids


def clean(text: str) -> str:
    """Normalise a text as OpenAI does, in lower case.

    ftfy repairs its encoding, HTML entities are resolved twice, and white space is reduced to single spaces.
    """
    if text.isascii() and text.isprintable() and "&" not in text:  # skips ftfy, which takes most of the time
        return " ".join(text.split()).lower()
    import ftfy
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


@cache
def _encoder() -> BytePairEncoder:
    return BytePairEncoder(VOCABULARY)


class BytePairEncoder:
    """Encodes text by the merges of a vocabulary file.

    Parameters
    ----------
    path : Path, the vocabulary file, gzipped

    Attributes
    ----------
    ids : dict of str to int, from each symbol to its token id
    rank : dict of (str, str) to int, from each pair of symbols to its line in the file; lower ranks are merged first
    """

    def __init__(self, path: Path):
        import regex

        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = [tuple(line.split()) for line in file.read().split("\n")[1 : MERGES + 1]]
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        letters = list(byte_letters().values())
        symbols = (
            letters + [letter + END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
        )
        self.ids = {symbol: number for number, symbol in enumerate(symbols)}
        # special tokens, English contractions, runs of letters, single digits, runs of anything else but space
        self.pieces = regex.compile(
            rf"{regex.escape(START)}|{regex.escape(END)}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
            regex.IGNORECASE,
        )
        self._piece_ids = lru_cache(maxsize=1 << 16)(self._encode_piece)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` without start and end token."""
        return [token for piece in self.pieces.findall(clean(text)) for token in self._piece_ids(piece)]

    def _encode_piece(self, piece: str) -> list[int]:
        """Return the token ids of one word, number or run of punctuation.

        The pair of neighbours with the lowest rank is merged until no pair of neighbours is in the file.
        """
        if piece in (START, END):
            return [self.ids[piece]]
        letters = byte_letters()
        word = [letters[byte] for byte in piece.encode("utf-8")]
        word[-1] += END_OF_WORD
        while len(word) > 1:
            pair = min(zip(word, word[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if pair not in self.rank:
                break
            word = _merge(word, pair)
        return [self.ids[symbol] for symbol in word]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Return `word` with every occurrence of `pair` merged into one symbol, from the left."""
    out, i = [], 0
    while i < len(word):
        is_pair = tuple(word[i : i + 2]) == pair
        out.append(pair[0] + pair[1] if is_pair else word[i])
        i += 2 if is_pair else 1
    return out


@cache
def byte_letters() -> dict[int, str]:
    """Return GPT-2's letter for each byte: printable Latin-1 bytes are themselves, the others letters from U+0100 on.

    The order of the dict, printable bytes first, is that of the first 256 token ids.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
