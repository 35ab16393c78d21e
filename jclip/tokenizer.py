"""CLIP's byte-pair encoding: text -> token ids, id for id those of OpenAI's `clip.tokenize`.

Byte-pair encoding over UTF-8 bytes, as in Sennrich et al. (arXiv:1508.07909) and GPT-2; the merges are OpenAI's file
`bpe_simple_vocab_16e6.txt.gz`, of which CLIP uses the first 48,894.
"""

from __future__ import annotations

import gzip
import html
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from .errors import ClipError

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
CONTEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
# The file holds more merges than CLIP uses: its ids are 256 bytes, the same bytes at the end of a word, the merges and
# the two special tokens.
MERGES = VOCABULARY_SIZE - 2 * 256 - 2
END_OF_WORD = "</w>"


def tokenize(texts: str | list[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> np.ndarray:
    """Token ids of each text between start and end token, zeros behind.

    Parameters
    ----------
    texts : one text or a list of n texts
    context_length : columns of the result; CLIP's models use 77
    truncate : cut an over-long text, keeping the end token, where the default is to raise

    Returns
    -------
    int32 array of shape (n, context_length). Raises ClipError for an over-long text.
    """
    rows = [texts] if isinstance(texts, str) else list(texts)
    bpe = _bpe()
    ids = np.zeros((len(rows), context_length), np.int32)
    for row, text in zip(ids, rows):
        if not isinstance(text, str):
            raise ClipError(f"tokenize: expected text, found {type(text).__name__}: {text!r}")
        tokens = [bpe.ids[START], *bpe.encode(text), bpe.ids[END]]
        if len(tokens) > context_length:
            if not truncate:
                raise ClipError(
                    f"text of {len(tokens)} tokens is too long for a context of {context_length}: {text!r}; "
                    "shorten it or pass truncate=True"
                )
            tokens = tokens[: context_length - 1] + [bpe.ids[END]]
        row[: len(tokens)] = tokens
    return ids


def clean(text: str) -> str:
    """Mended encoding, HTML entities resolved (twice, as OpenAI does), white space folded, lower case."""
    if (
        text.isascii() and text.isprintable() and "&" not in text
    ):  # nothing to mend or resolve; ftfy takes most of the time
        return " ".join(text.split()).lower()
    import ftfy
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


@cache
def _bpe() -> BytePairEncoder:
    return BytePairEncoder(VOCABULARY)


class BytePairEncoder:
    """The merges of a vocabulary file, and the ids they give.

    Attributes
    ----------
    ids : dict, symbol -> token id
    """

    def __init__(self, path: Path):
        import regex

        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = [tuple(line.split()) for line in file.read().split("\n")[1 : MERGES + 1]]
        self.rank = {pair: rank for rank, pair in enumerate(merges)}
        letters = list(_letter_of_byte().values())
        symbols = (
            letters + [letter + END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges] + [START, END]
        )
        self.ids = {symbol: number for number, symbol in enumerate(symbols)}
        # special tokens, English contractions, runs of letters, single digits, runs of anything else but space
        self.pieces = regex.compile(
            rf"{regex.escape(START)}|{regex.escape(END)}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
            regex.IGNORECASE,
        )
        self._word_ids = lru_cache(maxsize=1 << 16)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without start and end token."""
        return [number for piece in self.pieces.findall(clean(text)) for number in self._word_ids(piece)]

    def _merge(self, piece: str) -> list[int]:
        """Join the pair of lowest rank, everywhere in the word, until no pair of neighbours is in the file."""
        if piece in (START, END):
            return [self.ids[piece]]
        letters = _letter_of_byte()
        word = [letters[byte] for byte in piece.encode("utf-8")]
        word[-1] += END_OF_WORD
        while len(word) > 1:
            pair = min(zip(word, word[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if pair not in self.rank:
                break
            word = _joined(word, pair)
        return [self.ids[symbol] for symbol in word]


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of the two neighbours as one symbol, from the left."""
    out, i = [], 0
    while i < len(word):
        hit = tuple(word[i : i + 2]) == pair
        out.append(pair[0] + pair[1] if hit else word[i])
        i += 2 if hit else 1
    return out


@cache
def _letter_of_byte() -> dict[int, str]:
    """GPT-2's reversible alphabet: printable Latin-1 bytes are themselves, the rest are letters from U+0100 on.

    The order (printable bytes first) is that of the first 256 token ids.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
