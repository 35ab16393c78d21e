"""Images and texts per second of jclip, of OpenAI's code on PyTorch (eager, float32) and of onnxruntime, on the same CPU in one run.

    python bench/speed.py MODEL.pt --torch PYTHON [--batch 32] [--rounds 5]

MODEL.pt is a file of bench/parity_reference.py (random weights in the release format); PYTHON is that of the environment which
that script's head describes, with onnxruntime, onnx and onnxscript installed as well. Each program runs in a process of its own and is asked in turn,
so that all see the same machine; the medians are printed, and their ratios to jclip.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Class prompts of the contest's lengths: a template, and sentences of 10 to 20 words.
TEXTS = ["a photo of a Siberian husky, a type of dog.", "A Siberian husky is a medium-sized sled dog with upright pointed ears and a bushy tail.",
         "a photo of a 2012 Volvo C30 Hatchback, a type of car.", "Bibimbap seen from above is a circle of coloured strips around an egg."]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--torch", required=True, metavar="PYTHON", help="python of the environment with PyTorch and onnxruntime")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--texts", type=int, default=403)
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    texts = (TEXTS * a.texts)[: a.texts]
    workers = {"jclip": Worker(sys.executable, "jclip", a.model), "PyTorch": Worker(a.torch, "torch", a.model), "onnxruntime": Worker(a.torch, "onnx", a.model)}
    for what, count in (("image", a.batch), ("text", texts)):
        seconds = {name: [] for name in workers}
        for _ in range(a.rounds + 1):  # the first warms up
            for name, worker in workers.items():
                seconds[name].append(worker.ask(what, count))
        medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
        n = a.batch if what == "image" else len(texts)
        print(f"{what}s, {n} at a time: " + ", ".join(f"{name} {n / median:.1f}/s" for name, median in medians.items())
              + "; jclip is " + " and ".join(f"{median / medians['jclip']:.2f} x {name}" for name, median in medians.items() if name != "jclip"))


class Worker:
    """A process that computes features when asked, and says how long it took."""

    def __init__(self, python: str, name: str, model: Path):
        self.process = subprocess.Popen([python, str(HERE / "speed_worker.py"), name, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, content) -> float:
        self.process.stdin.write(json.dumps([what, content]) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


if __name__ == "__main__":
    main()
