"""Two sides of a comparison take turns on one machine: each is a process of its own, in an environment of its own.

A side is a module of this package that ends in `serve({"name": function, ...})`; the other end is a `Worker`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

PROJECT = Path(__file__).parent.parent
# What the environment of the other side needs; it must not be the project's own, for PyTorch takes another numpy.
SETUP = (
    'pip install torch==2.13.0 "numpy<2" pillow ftfy regex tqdm onnx onnxruntime\n'
    "    pip install --no-deps clip-anytorch torchvision      (of PyTorch a build for the CPU is enough)"
)


class Worker:
    """A process that does work when asked."""

    def __init__(self, name: str, python: str, side: str, *arguments):
        command = [python, "-m", f"bench.{side}", *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.name, self.process = name, subprocess.Popen(command, cwd=PROJECT, text=True, **pipes)

    def ask(self, what: str, **arguments) -> tuple[float, object]:
        """The seconds that the work took in its process, and its answer."""
        try:
            self.process.stdin.write(json.dumps([what, arguments]) + "\n")
            self.process.stdin.flush()
            return tuple(json.loads(self.process.stdout.readline()))
        except (ValueError, BrokenPipeError):
            sys.exit(f"{self.name} gave no answer; its environment needs:\n    {SETUP}")


def in_turn(workers: list[Worker], rounds: int, what: str, **arguments) -> dict[str, float]:
    """Median seconds by worker of `rounds` rounds, after one that warms up."""
    seconds = {worker.name: [] for worker in workers}
    for _ in range(rounds + 1):
        for worker in workers:
            seconds[worker.name].append(worker.ask(what, **arguments)[0])
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def serve(work: dict[str, Callable]) -> None:
    """Answer the requests of a Worker on stdin; what libraries print goes to stderr. A function may return (clock,
    answer)."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        what, arguments = json.loads(line)
        started = time.perf_counter()
        answer = work[what](**arguments)
        print(json.dumps([time.perf_counter() - started, answer]), file=answers, flush=True)
