"""Many images or texts -> rows of unit L2 norm, float32, in batches, with the images read ahead of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Callable

import numpy as np

from . import reading
from .errors import ClipError
from .preprocess import LEVELS, normalised
from .runtime import jittor
from .tokenizer import tokenize

# Rows computed at a time, by device. A GPU is filled by many.
IMAGE_BATCH = {"cpu": 32, "cuda": 256}
TEXT_BATCH = {"cpu": 64, "cuda": 128}


def unit(rows: np.ndarray) -> np.ndarray:
    """rows (..., d) scaled to unit L2 norm, float32; the norms are taken in float64."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def image_features(
    model,
    images: Iterable,
    read: Callable,
    batch_size: int | None = None,
    workers: int = 0,
    unreadable: dict[int, str] | None = None,
) -> Iterator[np.ndarray]:
    """Features of any number of images, batch by batch, in the order given; memory does not grow with their number.

    A row's bits depend on its image and on batch_size alone, not on the other images: see `_filled`.

    Parameters
    ----------
    model : from `jclip.load`
    images : whatever `read` understands: paths, (path, view) pairs, ...
    read : turns one of `images` into the uint8 array (resolution, resolution, 3) that `preprocess.crop` makes; with
        workers it is sent to other processes (`reading.batches` says how). What it raises is raised here.
    batch_size : images at a time; IMAGE_BATCH says how many by default
    workers : processes that read ahead; with 0 images are read here, in between
    unreadable : where it is given, an image whose reading raises Unreadable has a row without meaning, and its place
        and the cause are put here before its batch is yielded; nothing is raised then

    Yields
    ------
    float32 arrays (up to batch_size, d), rows of unit norm

    Raises ClipError where a batch does not fit into memory, the machine's or the GPU's.
    """
    jt, device = jittor(), _device()
    batch_size = batch_size or IMAGE_BATCH[device]
    started: list = []  # the batch that CUDA may still be computing, and how many rows of it count
    with _memory_of(batch_size):
        for batch in reading.batches(images, read, model.visual.input_resolution, batch_size, workers, unreadable):
            with jt.no_grad():
                rows = model.encode_image(_pixels(_filled(batch, batch_size), device))
            # Before the next batch is started: what is fetched from CUDA waits for all that was started, and readers
            # with it.
            finished = [_finished(*started.pop())] if started else []
            rows.sync()
            started.append((rows, len(batch)))
            if device == "cpu":  # has computed them by now
                finished.append(_finished(*started.pop()))
            yield from finished
        if started:
            yield _finished(*started.pop())


def _pixels(rgb: np.ndarray, device: str):
    """uint8 (n, h, w, 3) -> normalised Var (n, 3, h, w)."""
    from . import kernels

    return kernels.normalise(rgb, LEVELS) if device == "cuda" else jittor().array(normalised(rgb))


def _finished(rows, count: int) -> np.ndarray:
    return _checked(unit(rows.numpy()[:count]))


def _checked(rows: np.ndarray) -> np.ndarray:
    if not np.isfinite(rows).all():  # float16 ends at 65,504; such a row must not be kept
        raise ClipError(
            "features are not finite numbers; run with --precision float32, and check the weights if they still are not"
        )
    return rows


def _device() -> str:
    return "cuda" if jittor().flags.use_cuda else "cpu"


NO_MEMORY = (
    "Unable to alloc cuda",
    "cudaErrorMemoryAllocation",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)  # of Jittor's messages


@contextmanager
def _memory_of(batch_size: int):
    """Turn what numpy and Jittor say of memory that is not there into one line."""
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


def text_features(model, texts: list[str], batch_size: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features of n texts, batch by batch; raises ClipError for an over-long text.

    TEXT_BATCH says how many are computed at a time by default.

    Texts of like length are computed together, because a batch costs as much as its longest text for every row. On the
    CPU a row's bits depend on its text and on batch_size alone; on CUDA cuBLAS may round otherwise beside longer texts.

    Yields
    ------
    places in `texts`, int64 (up to batch_size,), and their rows, float32 (up to batch_size, d) of unit norm
    """
    jt = jittor()
    batch_size = batch_size or TEXT_BATCH[_device()]
    tokens = tokenize(texts, model.context_length)
    by_length = np.argsort((tokens != 0).sum(axis=1), kind="stable")
    for start in range(0, len(texts), batch_size):
        chosen = by_length[start : start + batch_size]
        with jt.no_grad():
            rows = model.encode_text(_filled(tokens[chosen], batch_size)).numpy()
        yield chosen, _checked(unit(rows[: len(chosen)]))


def _filled(batch: np.ndarray, n: int) -> np.ndarray:
    """The batch, its first row repeated until there are n: for few rows oneDNN takes other ways, which round
    otherwise."""
    if len(batch) >= n:
        return batch
    try:
        return np.concatenate([batch, np.repeat(batch[:1], n - len(batch), axis=0)])
    except ValueError as error:  # numpy's word for more than any machine has
        raise MemoryError(str(error)) from None


def prompt_ensemble(features: np.ndarray, counts: list[int]) -> np.ndarray:
    """One row a class: the mean of its prompts' unit features, scaled to unit norm (Radford et al., section 3.1.4).

    features (n, d): the prompts of the first class, then of the second, …; counts: how many each class has, at least 1.
    Returns float32 (len(counts), d).
    """
    starts = np.cumsum([0, *counts[:-1]])
    return unit(np.add.reduceat(np.asarray(features, np.float64), starts, axis=0))
