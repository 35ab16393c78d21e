"""Compare images and texts per second of jclip, OpenAI's code on PyTorch (eager, float32) and onnxruntime on one CPU.

    python -m bench.towers MODEL.pt --torch PYTHON [--batch 32] [--rounds 7]
    python -m bench.towers --model ViT-B/16 --torch PYTHON

MODEL.pt comes from bench/parity_reference.py (random weights in the release format); --model makes one in the system's
temporary folder. PYTHON is the interpreter of an environment with PyTorch and onnxruntime. The three take turns;
medians are printed, and their ratios, and how close the image tower comes to the matrix products it is made of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.worker import PROJECT, SETUP, Worker, in_turn
from fewshot import prompts
from fewshot.data import read_classes
from jclip import available_models, weights
from jclip.architecture import Architecture, architecture_of
from jclip.paths import expand

CLASSES = PROJECT / "Dataset" / "classes_b.txt"


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", nargs="?", type=expand, metavar="MODEL.pt")
    p.add_argument("--model", choices=available_models(), metavar="NAME", help="an official name, for random weights")
    p.add_argument(
        "--torch", type=expand, required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}"
    )
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rounds", type=int, default=7)
    a = p.parse_args(argv)
    if bool(a.weights) == bool(a.model):
        p.error("give MODEL.pt or --model NAME")
    with tempfile.TemporaryDirectory() as folder:
        path = a.weights or Path(folder) / "model.pt"
        workers = [Worker(name, a.torch, "reference", name, path) for name in ("torch", "onnxruntime")]
        if a.model:
            workers[0].ask("make_model", path=str(path), name=a.model)
        ours = Worker("jclip", sys.executable, "ours", path)
        measure([ours, *workers], products(architecture_of(weights.read(path))), a.batch, a.rounds)


def products(a: Architecture) -> list[tuple[int, int, int, int]]:
    """Return the matrix products of an image tower as (rows per image, inputs, outputs, times).

    After the attention of the last block, only one row is needed.
    """
    w, hidden, layers = a.vision_width, a.vision_mlp_width, a.vision_layers
    patches = (a.image_resolution // a.patch_size) ** 2
    rest = [(w, w), (w, hidden), (hidden, w)]
    return [
        (patches, 3 * a.patch_size**2, w, 1),
        (patches + 1, w, 3 * w, layers),
        *((patches + 1, k, n, layers - 1) for k, n in rest),
    ]


def measure(workers: list[Worker], shapes: list[tuple[int, int, int, int]], batch: int, rounds: int) -> None:
    """Print the rates of the towers; the first worker is ours."""
    ours = workers[0]
    seconds = in_turn(workers, rounds, "images", n=batch)
    report(f"images, {batch} at a time", batch, seconds)
    limit = sum(
        times * in_turn([ours], rounds, "product", m=rows * batch, k=k, n=n)["jclip"] for rows, k, n, times in shapes
    )
    flops = sum(2 * rows * batch * k * n * times for rows, k, n, times in shapes)
    print(
        f"the matrix products alone: {batch / limit:.1f} images/s at {flops / limit / 1e9:.0f} GFLOP/s; the tower "
        f"is at {limit / seconds['jclip']:.0%} of that"
    )

    class_prompts = prompts.read(read_classes(CLASSES))
    for what, texts in (
        ("class prompts", [of_class[0] for of_class in class_prompts.sentences]),
        ("descriptions", [of_class[-1] for of_class in class_prompts.sentences]),
    ):
        report(
            f"{len(texts)} {what} such as {texts[0]!r}",
            len(texts),
            in_turn(workers, max(2, rounds // 3), "texts", texts=texts),
        )


def report(what: str, n: int, seconds: dict[str, float]) -> None:
    """Print the rate of each side for n items, and how many times as fast jclip is."""
    print(
        f"{what}: "
        + ", ".join(f"{name} {n / s:.1f}/s" for name, s in seconds.items())
        + "; jclip is "
        + " and ".join(f"{s / seconds['jclip']:.2f} x {name}" for name, s in seconds.items() if name != "jclip"),
        flush=True,
    )


if __name__ == "__main__":
    main()
