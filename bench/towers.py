"""Compare images and texts per second of jclip, OpenAI's code on PyTorch (eager, float32) and onnxruntime on one CPU.

    python -m bench.towers MODEL.pt --torch PYTHON [--batch 32] [--rounds 7]

MODEL.pt comes from bench/parity_reference.py (random weights in the release format), PYTHON is the interpreter of an
environment with PyTorch and onnxruntime. The three take turns; medians are printed, and their ratios, and how close the
image tower comes to the matrix products it is made of.
"""

from __future__ import annotations

import argparse
import sys

from bench.worker import PROJECT, SETUP, Worker, in_turn
from fewshot import prompts
from fewshot.data import read_classes
from jclip.paths import expand

CLASSES = PROJECT / "Dataset" / "classes_b.txt"
# The matrix products of ViT-B/32 as (rows per image, inputs, outputs, times); after the attention of the last block,
# only one row is needed.
PRODUCTS = [(49, 3072, 768, 1), (50, 768, 2304, 12), (50, 768, 768, 11), (50, 768, 3072, 11), (50, 3072, 768, 11)]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=expand)
    p.add_argument(
        "--torch", type=expand, required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}"
    )
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rounds", type=int, default=7)
    a = p.parse_args(argv)
    ours = Worker("jclip", sys.executable, "ours", a.model)
    workers = [ours, *(Worker(name, a.torch, "reference", name, a.model) for name in ("torch", "onnxruntime"))]

    seconds = in_turn(workers, a.rounds, "images", n=a.batch)
    report(f"images, {a.batch} at a time", a.batch, seconds)
    limit = sum(
        times * in_turn([ours], a.rounds, "product", m=rows * a.batch, k=k, n=n)["jclip"]
        for rows, k, n, times in PRODUCTS
    )
    flops = sum(2 * rows * a.batch * k * n * times for rows, k, n, times in PRODUCTS)
    print(
        f"the matrix products alone: {a.batch / limit:.1f} images/s at {flops / limit / 1e9:.0f} GFLOP/s; the tower "
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
            in_turn(workers, max(2, a.rounds // 3), "texts", texts=texts),
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
