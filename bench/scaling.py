"""How cost grows: images a second by batch, time and memory of the adapter by rows and by classes.

    python -m bench.scaling [WEIGHTS]

Features are synthetic: classes are points on the unit sphere, rows lie around them. Each line is a process of its own,
so that its peak memory is its own. Without WEIGHTS the image tower is left out.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import numpy as np

WIDTH, VIEWS = 512, 10
BATCHES = (1, 8, 32, 128)
# (classes, shots a class, views, validation rows)
TASKS = [
    (250, 1, 4, 1_000),
    (250, 4, VIEWS, 10_000),
    (500, 20, VIEWS, 100_000),
    (403, 1, 1, 10_000),
    (1_000, 1, 1, 10_000),
    (3_000, 1, 1, 10_000),
    (10_000, 1, 1, 10_000),
]


def main(argv):
    if argv[:1] == ["tower"]:
        return tower(argv[1], int(argv[2]))
    if argv[:1] == ["adapter"]:
        return adapter(*map(int, argv[1:]))
    for batch in BATCHES if argv else ():
        again("tower", argv[0], batch)
    for task in TASKS:
        again("adapter", *task)


def again(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "bench.scaling", *map(str, arguments)], check=True, stderr=subprocess.DEVNULL)


def tower(weights: str, batch: int) -> None:
    import jclip
    from jclip import runtime

    model, preprocess = jclip.load(weights, "cpu")
    jt, side = runtime.jittor(), preprocess.resolution
    pixels = np.random.default_rng(0).standard_normal((batch, 3, side, side), np.float32)

    def run():
        with jt.no_grad():
            model.encode_image(jt.array(pixels)).numpy()

    run(), run()
    seconds = np.median([timed(run) for _ in range(max(3, 64 // batch))])
    print(f"batch {batch:3}: {batch / seconds:5.1f} images/s, {peak()}", flush=True)


def adapter(classes: int, shots: int, views: int, rows: int) -> None:
    import tip_adapter_utils as tip
    from fewshot.artifacts import Split, Support, Text
    from fewshot.rows import all_views, unit_rows
    from methods.folds import make_folds
    from methods.grid import search

    def near(centres):
        return unit_rows(centres + 0.08 * rng.standard_normal(centres.shape, np.float32))

    rng = np.random.default_rng(0)
    centres = unit_rows(rng.standard_normal((classes, WIDTH), np.float32))
    labels, of_val = np.arange(classes).repeat(shots), np.arange(rows) % classes
    text = Text(near(centres), names(classes), 100.0)
    views_of_shots = near(centres[labels.repeat(views)]).reshape(-1, views, WIDTH)
    support = Support(views_of_shots, labels, names(len(labels)))
    val = Split(near(centres[of_val]), of_val, names(rows))
    folds, _ = make_folds(support, val)
    cache = tip.build_cache(support.features, labels, classes)
    search_seconds = timed(lambda: search(text, support, folds, [cache]))
    flat = all_views(support)
    epochs = tip.fine_tune(flat, text, cache, epochs=20, lr=1e-3, seed=1, device="cpu")
    next(epochs)  # compiles
    print(
        f"{classes:6} classes, {len(labels):6} shots, {len(flat[0]):6} rows to train on, {rows:6} to validate: "
        f"search {search_seconds:6.2f} s, an epoch {timed(lambda: next(epochs)):6.2f} s, {peak()}",
        flush=True,
    )


def names(n: int):
    return np.array([str(i) for i in range(n)])


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak() -> str:
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"


if __name__ == "__main__":
    main(sys.argv[1:])
