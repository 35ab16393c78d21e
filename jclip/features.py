"""Many images or texts -> rows of unit L2 norm, float32, in batches, with the images read ahead of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Callable, NamedTuple

import numpy as np

from . import reading
from .errors import ClipError
from .preprocess import normalised
from .runtime import jittor
from .settings import OPENAI
from .tokenizer import tokenize

# Rows computed at a time, by device: a GPU needs many to be busy.
IMAGE_BATCH = {"cpu": 32, "cuda": 256}
TEXT_BATCH = {"cpu": 64, "cuda": 128}


class Encoded(NamedTuple):
    """Rows of n images, and those among them that cannot be read."""

    rows: np.ndarray  # float32 (n, d) of unit L2 norm; NaN for an image that cannot be read
    failures: dict[int, str]  # index of the image -> why it cannot be read


class EncodedTexts(NamedTuple):
    """Rows of some of the texts."""

    indices: np.ndarray  # int64 (n,), of the texts
    rows: np.ndarray  # float32 (n, d) of unit L2 norm


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows to unit L2 norm; the norms are taken in float64.

    Parameters
    ----------
    rows : array of shape (..., d)

    Returns
    -------
    float32 array of the same shape
    """
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def image_features(
    model, images: Iterable, read: Callable, batch_size: int | None = None, workers: int = 0
) -> Iterator[Encoded]:
    """Encode any number of images in batches and in order; memory does not grow with their number.

    The bits of a row depend on its image and on batch_size alone, not on the other images (see `_filled`).

    Parameters
    ----------
    model : jclip.model.CLIP
    images : iterable
        Whatever `read` understands: paths, (path, view) pairs, …
    read : callable
        Turns one of `images` into the uint8 array (resolution, resolution, 3) that `preprocess.crop` makes, with the
        model's PreprocessConfig, or raises Unreadable; `reading.batches` says more.
    batch_size : int, optional
        Images computed at a time; by default IMAGE_BATCH of the device.
    workers : int
        Processes that read ahead; with 0 images are read between the batches.

    Yields
    ------
    Encoded
        Of up to batch_size images.

    Raises
    ------
    ClipError
        Where a batch does not fit into memory, the machine's or the GPU's, and where a row is not finite.
    """
    jt, device = jittor(), _device()
    batch_size = batch_size or IMAGE_BATCH[device]
    levels = getattr(model, "settings", OPENAI).preprocess.levels  # whatever has an encode_image may be a model
    started: list = []  # the batch that CUDA may still be computing
    with _memory_errors(batch_size):
        for batch in reading.batches(images, read, model.visual.input_resolution, batch_size, workers):
            with jt.no_grad():
                rows = model.encode_image(_pixels(_filled(batch.pixels, batch_size), levels, device))
            # Fetch before the next batch starts: CUDA would first compute that one, and the readers would wait with us.
            finished = [_fetch(*started.pop())] if started else []
            rows.sync()
            started.append((rows, len(batch.pixels), batch.failures))
            if device == "cpu":  # where sync has computed them
                finished.append(_fetch(*started.pop()))
            yield from finished
        if started:
            yield _fetch(*started.pop())


def _pixels(rgb: np.ndarray, levels: np.ndarray, device: str):
    """uint8 (n, h, w, 3) -> normalised Var (n, 3, h, w)."""
    from . import kernels

    return kernels.normalise(rgb, levels) if device == "cuda" else jittor().array(normalised(rgb, levels))


def _fetch(rows, count: int, failures: dict[int, str]) -> Encoded:
    rows = _check_finite(unit(rows.numpy()[:count]))
    rows[list(failures)] = np.nan
    return Encoded(rows, failures)


def _check_finite(rows: np.ndarray) -> np.ndarray:
    if not np.isfinite(rows).all():  # float16 overflows at 65,504
        raise ClipError(
            "features are not finite numbers; run with --precision float32, and check the weights if they still are not"
        )
    return rows


def _device() -> str:
    return "cuda" if jittor().flags.use_cuda else "cpu"


# What Jittor's messages say where the GPU's memory is full.
NO_MEMORY = ("Unable to alloc cuda", "cudaErrorMemoryAllocation", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def _memory_errors(batch_size: int):
    """Turn the errors of numpy and Jittor about memory into one line."""
    try:
        yield
    except MemoryError:
        where = "memory"
    except ClipError:
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        where = "the GPU's memory"
    else:
        return
    raise ClipError(f"a batch of {batch_size} does not fit into {where}; choose a smaller --batch-size")


def text_features(model, texts: Sequence[str], batch_size: int | None = None) -> Iterator[EncodedTexts]:
    """Encode n texts in batches of texts of similar length, because a batch costs as much as its longest text.

    On the CPU the bits of a row depend on its text and on batch_size alone; on CUDA cuBLAS may round otherwise beside
    longer texts.

    Parameters
    ----------
    model : jclip.model.CLIP
    texts : sequence of str
    batch_size : int, optional
        Texts computed at a time; by default TEXT_BATCH of the device.

    Yields
    ------
    EncodedTexts
        Of up to batch_size texts.

    Raises
    ------
    ClipError
        For a text that is too long, and where a row is not finite.
    """
    jt = jittor()
    batch_size = batch_size or TEXT_BATCH[_device()]
    tokens = tokenize(texts, model.context_length)
    for indices in batches_by_length(tokens, batch_size):
        with jt.no_grad():
            rows = model.encode_text(_filled(tokens[indices], batch_size)).numpy()
        yield EncodedTexts(indices, _check_finite(unit(rows[: len(indices)])))


def batches_by_length(tokens: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the indices of token ids (n, context_length) in batches of similar length, the shortest first."""
    by_length = np.argsort((tokens != 0).sum(axis=1), kind="stable")
    return (by_length[start : start + batch_size] for start in range(0, len(tokens), batch_size))


def _filled(batch: np.ndarray, n: int) -> np.ndarray:
    """Repeat the first element until there are n: oneDNN computes few rows in other ways, which round otherwise."""
    if len(batch) >= n:
        return batch
    try:
        return np.concatenate([batch, np.repeat(batch[:1], n - len(batch), axis=0)])
    except ValueError as error:  # numpy's word for more than any machine has
        raise MemoryError(str(error)) from None


def prompt_ensemble(features: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Average the prompts of each class and scale the mean to unit norm (Radford et al., arXiv:2103.00020, 3.1.4).

    Parameters
    ----------
    features : array of shape (n, d)
        Unit rows: the prompts of the first class, then of the second, …
    counts : sequence of int, length C
        Number of prompts of each class, at least 1.

    Returns
    -------
    float32 array of shape (C, d)
    """
    starts = np.cumsum([0, *counts[:-1]])
    return unit(np.add.reduceat(np.asarray(features, np.float64), starts, axis=0))
