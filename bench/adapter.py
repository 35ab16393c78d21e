"""Time the search for alpha and beta and 20 epochs of Tip-Adapter-F against PyTorch, on the features of a task.

    python -m bench.adapter OUTPUT --torch PYTHON [--rounds 3]

OUTPUT holds text.npz, support.npz and val.npz; PYTHON is the interpreter of an environment with PyTorch. The published
search runs once because it takes minutes; all else runs in turn on both sides. The results of both are printed.
"""

from __future__ import annotations

import argparse
import sys

from bench.worker import SETUP, Worker, in_turn
from jclip.paths import expand


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("output", type=expand)
    p.add_argument(
        "--torch", type=expand, required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}"
    )
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args(argv)
    ours, torch = (
        Worker("jittor-tip-adapter", sys.executable, "ours"),
        Worker("PyTorch", a.torch, "reference", "torch"),
    )
    task = {"folder": str(a.output.resolve())}
    seconds = in_turn([torch, ours], a.rounds, "tip_f", **task)
    report(
        "tip-f, 20 epochs, each validated (ours: and the search)",
        seconds,
        {worker.name: worker.ask("tip_f", **task)[1] for worker in (torch, ours)},
    )
    torch_seconds, torch_best = torch.ask("search", **task)  # takes minutes, so once
    report(
        "alpha and beta on a grid of 200 x 20",
        {torch.name: torch_seconds, **in_turn([ours], a.rounds, "search", **task)},
        {torch.name: torch_best, ours.name: ours.ask("search", **task)[1]},
    )


def report(title: str, seconds: dict[str, float], answers: dict) -> None:
    """Print the seconds and results of both sides, PyTorch's first."""
    theirs, own = seconds.values()
    print(
        f"{title}: "
        + ", ".join(f"{name} {s:.2f} s {answers[name]}" for name, s in seconds.items())
        + f"; {theirs / own:.2f} x as fast",
        flush=True,
    )


if __name__ == "__main__":
    main()
