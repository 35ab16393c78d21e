"""Run the sides of a benchmark in turn on one machine, each as a process in its own Python environment.

A side is a module of this package that ends in `serve({"name": function, ...})`; a `Worker` starts and asks it.
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
# How to make the environment of the other side; PyTorch needs another numpy than the project.
SETUP = (
    'pip install torch==2.13.0 "numpy<2" pillow ftfy regex tqdm onnx onnxruntime openvino\n'
    "    pip install --no-deps clip-anytorch torchvision      (of PyTorch a build for the CPU is enough)"
)
# Sides of bench/reference.py; in float32 unless the name says bfloat16, which is PyTorch's autocast, OpenVINO's hint.
PEERS = ("torch", "torch-compile", "torch-bfloat16", "onnxruntime", "openvino", "openvino-bfloat16")


class Worker:
    """A process of one side that runs functions by name."""

    def __init__(self, name: str, python: str, side: str, *arguments):
        command = [python, "-m", f"bench.{side}", *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.name, self.process = name, subprocess.Popen(command, cwd=PROJECT, text=True, **pipes)

    def ask(self, what: str, **arguments) -> tuple[float, object]:
        """Run the function `what`; return the seconds it took in its process, and its result."""
        try:
            self.process.stdin.write(json.dumps([what, arguments]) + "\n")
            self.process.stdin.flush()
            return tuple(json.loads(self.process.stdout.readline()))
        except (ValueError, BrokenPipeError):
            sys.exit(f"{self.name} gave no answer; its environment needs:\n    {SETUP}")


def in_turn(workers: list[Worker], rounds: int, what: str, **arguments) -> dict[str, float]:
    """Return the median seconds of each worker over `rounds` rounds, after one that warms up."""
    seconds = {worker.name: [] for worker in workers}
    for _ in range(rounds + 1):
        for worker in workers:
            seconds[worker.name].append(worker.ask(what, **arguments)[0])
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def serve(work: dict[str, Callable]) -> None:
    """Answer the requests of a Worker on stdin; what libraries print goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        what, arguments = json.loads(line)
        started = time.perf_counter()
        answer = work[what](**arguments)
        print(json.dumps([time.perf_counter() - started, answer]), file=answers, flush=True)
