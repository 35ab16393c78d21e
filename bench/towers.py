"""Compare images and texts per second of jclip and of OpenAI's code on PyTorch, onnxruntime and OpenVINO on one CPU.

    python -m bench.towers MODEL.pt --torch PYTHON [--batch 32] [--rounds 7] [--only images]
    python -m bench.towers --model RN50 --torch PYTHON ...

MODEL.pt comes from bench/parity_reference.py (random weights in the release format); --model makes such a file for the
time of the comparison. PYTHON is the interpreter of an environment with PyTorch; peers that it lacks are left out, and
so is bfloat16 where the CPU has no instructions for it. All take turns; medians are printed, and their ratios, also to
the best peer, and how close the image tower comes to the matrix products it is made of.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from bench.worker import PEERS, PROJECT, SETUP, Worker, in_turn
from fewshot import prompts
from fewshot.data import read_classes
from jclip import available_models, resnet_weights, weights
from jclip.architecture import Architecture, architecture_of
from jclip.paths import expand

CLASSES = PROJECT / "Dataset" / "classes_b.txt"
SQUARE = 2048  # rows of a matrix whose product with another shows what the processor can do
OURS = {"jclip": "float32", "jclip-half": "half"}  # by precision


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file", type=expand, nargs="?", metavar="MODEL.pt")
    p.add_argument("--model", choices=available_models(), metavar="NAME", help="an official name, for random weights")
    p.add_argument(
        "--torch", type=expand, required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}"
    )
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--only", choices=("images", "texts"))
    p.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=PEERS,
        metavar="LIST",
        help=f"whom to compare with (default: {','.join(PEERS)}, where they are installed)",
    )
    a = p.parse_args(argv)
    if unknown := set(a.peers) - set(PEERS):
        p.error(f"no peer {', '.join(sorted(unknown))}; expected some of {','.join(PEERS)}")
    if bool(a.file) == bool(a.model):
        p.error("give a file or --model")
    with tempfile.TemporaryDirectory() as folder:
        file = a.file or Path(folder) / "model.pt"
        if a.model:
            Worker("PyTorch", a.torch, "reference", "torch").ask("make_model", path=str(file), name=a.model)
        workers = [Worker(name, sys.executable, "ours", file, precision) for name, precision in OURS.items()]
        workers += [Worker(name, a.torch, "reference", name, file) for name in a.peers]
        workers = [worker for worker in workers if can_work(worker)]
        if a.only != "texts":
            compare_images(workers, architecture_of(weights.read(file)), a.batch, a.rounds)
        if a.only != "images":
            compare_texts(workers, a.rounds)


def can_work(worker: Worker) -> bool:
    """Return whether a worker has what it needs; if not, say what is missing, and end it."""
    _, missing = worker.ask("missing")
    if missing:
        print(f"without {worker.name}: {missing}", flush=True)
        worker.process.kill()
    return not missing


def compare_images(workers: list[Worker], a: Architecture, batch: int, rounds: int) -> None:
    """Time the image towers, and the matrix products that are most of their work."""
    seconds = in_turn(workers, rounds, "images", n=batch)
    report(f"images, {batch} at a time", batch, seconds)
    ours = workers[:1]
    if a.is_resnet:
        flops = batch * convolution_flops(a)
        square = in_turn(ours, rounds, "product", m=SQUARE, k=SQUARE, n=SQUARE)["jclip"]
        speed, peak = flops / seconds["jclip"] / 1e9, 2 * SQUARE**3 / square / 1e9
        print(
            f"the convolutions, {flops / batch / 1e9:.1f} GFLOP an image, and with them the tower, run at {speed:.0f} "
            f"GFLOP/s; a matrix product of {SQUARE}³ at {peak:.0f}"
        )
        return
    products = vit_products(a)
    limit = sum(
        times * in_turn(ours, rounds, "product", m=rows * batch, k=k, n=n)["jclip"] for rows, k, n, times in products
    )
    flops = sum(2 * rows * batch * k * n * times for rows, k, n, times in products)
    print(
        f"the matrix products alone: {batch / limit:.1f} images/s at {flops / limit / 1e9:.0f} GFLOP/s; the tower "
        f"is at {limit / seconds['jclip']:.0%} of that"
    )


def compare_texts(workers: list[Worker], rounds: int) -> None:
    """Time the text towers on class prompts and on descriptions."""
    sentences = prompts.read(read_classes(CLASSES)).sentences
    for what, texts in (
        ("class prompts", [of_class[0] for of_class in sentences]),
        ("descriptions", [of_class[-1] for of_class in sentences]),
    ):
        report(
            f"{len(texts)} {what} such as {texts[0]!r}",
            len(texts),
            in_turn(workers, max(2, rounds // 3), "texts", texts=texts),
        )


def vit_products(a: Architecture) -> list[tuple[int, int, int, int]]:
    """Return the matrix products of a vision transformer as (rows per image, inputs, outputs, times).

    After the attention of the last block, only one row is needed.
    """
    w, hidden, layers = a.vision_width, a.vision_mlp_width, a.vision_layers
    patches = (a.image_resolution // a.patch_size) ** 2
    l = patches + 1
    return [
        (patches, 3 * a.patch_size**2, w, 1),
        (l, w, 3 * w, layers),
        (l, w, w, layers - 1),
        (l, w, hidden, layers - 1),
        (l, hidden, w, layers - 1),
    ]


def convolution_flops(a: Architecture) -> int:
    """Return the floating point operations of a ResNet's convolutions for one image."""
    flops, side = 0, a.image_resolution // 2
    for name, _, shape in resnet_weights.convolutions(a.vision_width, a.vision_layers):
        if name.endswith(".0.conv1") and name.startswith("layer1"):
            side //= 2
        if name.endswith(".0.conv3") and not name.startswith("layer1"):
            side //= 2  # the average pool before it
        flops += 2 * side**2 * math.prod(shape)
    return flops


def report(what: str, n: int, seconds: dict[str, float]) -> None:
    """Print the rate of each side for n items, and how many times as fast this program is as each, and as the best."""
    print(f"{what}: {', '.join(f'{name} {n / s:.1f}/s' for name, s in seconds.items())}")
    peers = {name: s for name, s in seconds.items() if name not in OURS}
    for ours in (name for name in OURS if name in seconds):
        others = {**peers, **({"jclip": seconds["jclip"]} if ours != "jclip" else {})}
        ratios = ", ".join(f"{s / seconds[ours]:.2f} x {name}" for name, s in others.items())
        best = min(peers, key=peers.get, default="")
        print(f"  {ours} is {ratios}" + (f"; the best of them is {best}" if len(peers) > 1 else ""), flush=True)


if __name__ == "__main__":
    main()
