"""Many images or texts -> rows of unit L2 norm, float32, in batches, with the images read ahead of the model."""
from __future__ import annotations

from typing import Callable, Iterable, Iterator

import numpy as np

from . import reading
from .preprocess import normalised
from .runtime import jittor
from .tokenizer import tokenize

TEXT_BATCH = 64


def unit(rows: np.ndarray) -> np.ndarray:
    """rows (..., d) scaled to unit L2 norm, float32; the norms are taken in float64."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def image_features(model, images: Iterable, read: Callable, batch_size: int = 32, workers: int = 0) -> Iterator[np.ndarray]:
    """Features of any number of images, batch by batch, in the order given; memory does not grow with their number.

    Parameters
    ----------
    model : from `jclip.load`
    images : whatever `read` understands: paths, (path, view) pairs, ...
    read : turns one of `images` into the uint8 array (resolution, resolution, 3) that `preprocess.crop` makes; with
        workers it is sent to other processes (`reading.batches` says how). What it raises is raised here.
    batch_size : images at a time
    workers : processes that read ahead; with 0 images are read here, in between

    Yields
    ------
    float32 arrays (up to batch_size, d), rows of unit norm
    """
    jt = jittor()
    for batch in reading.batches(images, read, model.visual.input_resolution, batch_size, workers):
        with jt.no_grad():
            rows = model.encode_image(jt.array(normalised(batch))).numpy()
        yield unit(rows)


def text_features(model, texts: list[str], progress: Callable[[int], object] = lambda done: None) -> np.ndarray:
    """Features of n texts, float32 (n, d), rows of unit norm; raises ClipError for an over-long text.

    Texts of like length are computed together, because a batch costs as much as its longest text for every row.
    progress(done) is called after each batch with the number of texts it held.
    """
    jt = jittor()
    tokens = tokenize(texts, model.context_length)
    by_length = np.argsort((tokens != 0).sum(axis=1), kind="stable")
    features = None
    for start in range(0, len(texts), TEXT_BATCH):
        chosen = by_length[start : start + TEXT_BATCH]
        with jt.no_grad():
            rows = model.encode_text(tokens[chosen]).numpy()
        features = np.empty((len(texts), rows.shape[1]), np.float32) if features is None else features
        features[chosen] = unit(rows)
        progress(len(chosen))
    return features


def prompt_ensemble(features: np.ndarray, counts: list[int]) -> np.ndarray:
    """One row a class: the mean of its prompts' unit features, scaled to unit norm (Radford et al., section 3.1.4).

    features (n, d): the prompts of the first class, then of the second, …; counts: how many each class has, at least 1.
    Returns float32 (len(counts), d).
    """
    starts = np.cumsum([0, *counts[:-1]])
    return unit(np.add.reduceat(np.asarray(features, np.float64), starts, axis=0))
