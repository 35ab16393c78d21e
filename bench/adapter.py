"""Choosing alpha and beta, and 20 epochs of Tip-Adapter-F, against the same in PyTorch, on the features of a task.

    python bench/adapter.py OUTPUT --torch PYTHON [--rounds 3]

OUTPUT holds text.npz, support.npz and val.npz; PYTHON is the interpreter of an environment with PyTorch. The published loop runs
once (minutes), the rest takes turns. Both sides' answers are printed.
"""
from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from worker import SETUP, Worker


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("output", type=Path)
    p.add_argument("--torch", required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}")
    p.add_argument("--rounds", type=int, default=3)
    a = p.parse_args()
    ours, torch = Worker("jittor-tip-adapter", sys.executable, "ours.py"), Worker("PyTorch", a.torch, "reference.py", "torch")
    for what, title, rounds_of_torch in (("tip_f", "tip-f, 20 epochs, each validated (ours: and the search)", a.rounds), ("search", "alpha and beta on a grid of 200 x 20", 1)):
        seconds, answers = {}, {}
        for worker, rounds in ((torch, rounds_of_torch), (ours, a.rounds)):
            if what == "tip_f":
                worker.ask(what, folder=str(a.output.resolve()))  # compiles, warms up
            runs = [worker.ask(what, folder=str(a.output.resolve())) for _ in range(rounds)]
            seconds[worker.name], answers[worker.name] = statistics.median(s for s, _ in runs), runs[-1][1]
        print(f"{title}: " + ", ".join(f"{name} {s:.2f} s {answers[name]}" for name, s in seconds.items())
              + f"; {seconds[torch.name] / seconds[ours.name]:.1f} x as fast", flush=True)


if __name__ == "__main__":
    main()
