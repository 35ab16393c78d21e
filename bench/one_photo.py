"""Time one photograph from process start to printed answer: predict.py against OpenAI's code on PyTorch.

    python -m bench.one_photo PHOTO OUTPUT --ours MODEL.pkl --theirs MODEL.pt --torch PYTHON [--rounds 5]

OUTPUT holds adapter.npz; MODEL.pkl is what convert_weights.py makes of MODEL.pt. Run a second time, so that all files
are in the system's cache and Jittor's kernels are compiled.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.worker import PROJECT, SETUP
from jclip.paths import expand


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photo", type=expand)
    p.add_argument("output", type=expand)
    p.add_argument("--ours", type=expand, required=True, metavar="MODEL.pkl")
    p.add_argument("--theirs", type=expand, required=True, metavar="MODEL.pt")
    p.add_argument(
        "--torch", type=expand, required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}"
    )
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args(argv)
    commands = {
        "predict.py": [
            sys.executable,
            str(PROJECT / "predict.py"),
            a.photo,
            "--output",
            a.output,
            "--weights",
            a.ours,
            "--device",
            "cpu",
        ],
        "PyTorch": [a.torch, "-m", "bench.one_photo_torch", a.photo, str(Path(a.output) / "adapter.npz"), a.theirs],
    }
    runs = {name: [] for name in commands}
    for _ in range(a.rounds + 1):
        for name, command in commands.items():
            runs[name].append(measure(command))
    seconds = {name: statistics.median(s for s, _ in measured[1:]) for name, measured in runs.items()}
    print(
        ", ".join(f"{name} {s:.2f} s, {runs[name][-1][1]:.0f} MB" for name, s in seconds.items())
        + f"; predict.py takes {seconds['predict.py'] / seconds['PyTorch']:.2f} of PyTorch's time"
    )


def measure(command: list[str]) -> tuple[float, float]:
    """Run the command and return its seconds from start to end and its peak memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed; run it by hand to see why")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
