"""This project's side of the comparisons: python -m bench.ours [MODEL [PRECISION]]; bench/worker.py says how to ask it.

PRECISION is that of a model where none is asked for, by default float32.
"""

import sys
import time
from functools import cache
from pathlib import Path

import numpy as np

import tip_adapter_utils as tip
from bench.worker import serve
from fewshot.rows import all_views
from fewshot.task_features import read_features
from jclip import features, load, runtime
from jclip.errors import ClipError
from methods import Settings, grid, train
from methods.folds import make_folds

PRECISION = sys.argv[2] if len(sys.argv) > 2 else "float32"


def missing():
    """Return why PRECISION cannot be had on the CPU, or ""."""
    try:
        runtime.use("cpu", PRECISION)
    except ClipError as error:
        return str(error)
    return ""


def version():
    return f"Jittor {runtime.jittor().__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}"


@cache
def model(device, precision):
    return load(sys.argv[1], device, precision=precision)[0]


@cache
def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@cache
def held(*shape):
    """The same as a Var that is on the device already."""
    x = runtime.jittor().array(noise(*shape)) + 0
    x.sync(True)
    return x


# ---- the towers ----


def images(n, device="cpu", precision=PRECISION, on_device=False, times=1):
    """`times` batches of n, from normalised pixels in the host's memory, or on the device, to features in the host's
    memory."""
    clip, jt = model(device, precision), runtime.jittor()
    side = clip.visual.input_resolution
    pixels = (held if on_device else noise)(n, 3, side, side)
    for _ in range(times):
        with jt.no_grad():
            clip.encode_image(pixels if on_device else jt.array(pixels)).numpy()


def texts(texts, device="cpu", precision=PRECISION, batch=None):
    clip = model(device, precision)
    list(features.text_features(clip, texts, batch) if batch else features.text_features(clip, texts))


def product(m, k, n):
    """The matrix product of which the towers are made: (m, k) times the transpose of (n, k)."""
    jt = runtime.jittor()
    jt.nn.matmul_transpose(jt.array(noise(m, k)), jt.array(noise(n, k))).numpy()


# ---- files ----


@cache
def photos(folder):
    from fewshot.data import UNKNOWN, Photo, photographs

    return [Photo(Path(folder), file.name, UNKNOWN) for file in photographs(Path(folder))]


@cache
def encoder(device, precision):
    from fewshot.encoder import Encoder

    return Encoder.load(Path(sys.argv[1]), device, precision=precision)


def files(folder, n, device="cpu", precision="float32"):
    """The first n photographs of a folder to features, as extract_feature.py makes them."""
    rows, failures = encoder(device, precision).encode_photos(photos(folder)[:n], "files")
    assert len(rows) == n and not failures, failures


def decode(folder, n, workers, batch):
    """Photographs that so many processes read in a second, without a model, after the first batch."""
    from fewshot.encoder import PixelReader
    from jclip import reading

    read = started = 0
    items = [(photo, 0) for photo in photos(folder)[:n]]
    for found in reading.batches(items, PixelReader(224, ("plain",), 0), 224, batch, workers):
        if started:
            read += len(found.pixels)
        else:
            started = time.perf_counter()
    return read / (time.perf_counter() - started)


# ---- the adapter ----


@cache
def task(folder):
    return read_features(Path(folder))


def search(folder):
    text, support, val = task(folder)
    folds, _ = make_folds(support, val)
    best = grid.search(text, support, folds, [tip.build_cache(support.features, support.labels, len(text.names))])
    return {"alpha": best.alpha, "beta": best.beta, "top1": best.scores["top1"]}


def tip_f(folder, device="cpu"):
    """The whole method, the search for alpha and beta included."""
    return {"top1": train("tip-f", *task(folder), Settings(device=device)).scores["top1"]}


def fine_tuning(folder, device="cpu"):
    """20 epochs, validated after each, without the search."""
    text, support, val = task(folder)
    cache = tip.build_cache(support.features, support.labels, len(text.names))
    epochs = tip.fine_tune(
        all_views(support),
        text,
        cache,
        epochs=20,
        lr=1e-3,
        seed=1,
        device=device,
        validation=(val.features, val.labels),
    )
    assert sum(1 for _ in epochs) == 20


if __name__ == "__main__":
    serve(
        {
            function.__name__: function
            for function in (missing, version, images, texts, product, files, decode, search, tip_f, fine_tuning)
        }
    )
