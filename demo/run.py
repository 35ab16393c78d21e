"""The whole job on a small drawn world: draws the data set, runs the three scripts, ends with a table and a picture.

    python -m demo.run [FOLDER]

The world is new to the demo's tiny CLIP (demo/clip.npz, made by demo/train_clip.py). Signs and flocks are new company
of words that it knows; of the things it has met neither the shapes nor the names; four classes have no training
photograph.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from fewshot import cli
from fewshot.errors import TaskError

HERE = Path(__file__).parent

METHODS = {"zero-shot": "zero-shot", "tip": "Tip-Adapter", "tip-f": "Tip-Adapter-F", "blend": "blend (default)"}


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--device")
    p.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=HERE / "build",
        metavar="FOLDER",
        help="where all is written (default: demo/build)",
    )
    return p.parse_args(argv)


@cli.script
def main(argv=None):
    a = parse(argv)
    a.folder = a.folder.absolute()
    dataset, output = a.folder / "Dataset", a.folder / "output"
    run("-m", "demo.make_data", dataset)
    clip = ["--weights", HERE / "clip.npz", "--prompts", HERE / "prompts"]
    run("extract_feature.py", "--data", dataset, *clip, "--output", output, "--device", a.device)
    figures = {}
    for method, name in METHODS.items():
        run("train_adapter.py", "--method", method, "--output", output, "--device", a.device)
        sheet = ["--sheet", a.folder / "sheet.png", "--data", dataset] if method == "blend" else []
        run("predict.py", "--output", output, "--result", a.folder / "result.txt", *sheet)
        figures[name] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["test"]
    with np.load(output / "support.npz") as support, np.load(output / "text.npz") as text:
        shots = {str(text["names"][label]) for label in support["labels"]}
    print(
        table(figures, shots),
        f"The photographs with their five likeliest classes: {a.folder / 'sheet.png'}",
        sep="\n\n",
    )


def run(*arguments) -> None:
    """Run Python in the project's folder and show the command; TaskError where it fails, its own message above."""
    shown = [
        str(Path(argument).resolve().relative_to(Path.cwd()))
        if isinstance(argument, Path) and Path.cwd() in Path(argument).resolve().parents
        else str(argument)
        for argument in arguments
    ]
    print(f"\n$ python {shlex.join(shown)}", flush=True)
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=HERE.parent)
    if done.returncode:
        raise TaskError(f"{shown[0]} ended with exit code {done.returncode}")


def table(figures: dict[str, dict], with_shots: set[str]) -> str:
    """Format top-1 and top-5 of each method in %: of all photographs, by group, of classes with and without shots."""
    one = next(iter(figures.values()))
    rows = [("all", lambda f: f)]
    rows += [(group, lambda f, group=group: f["groups"][group]) for group in one["groups"]]
    rows += [
        (title, lambda f, shots=shots: mean(f, lambda name: (name in with_shots) == shots))
        for title, shots in (("classes with shots", True), ("classes without shots", False))
    ]
    lines = [
        " " * 28 + "".join(f"{name:>17}" for name in figures),
        f"{'':20}{'photos':>8}" + f"{'top-1':>10}{'top-5':>7}" * len(figures),
    ]
    for title, of in rows:
        found = [of(f) for f in figures.values()]
        lines.append(
            f"{title:22}{found[0]['n']:6}" + "".join(f"{100 * f['top1']:10.1f}{100 * f['top5']:7.1f}" for f in found)
        )
    return "\n" + "\n".join(lines)


def mean(figures: dict, chosen) -> dict:
    """Figures over the photographs of the chosen classes."""
    of = [f for name, f in figures["per_class"].items() if chosen(name) and f["n"]]
    n = sum(f["n"] for f in of)
    return {"n": n, **{key: sum(f[key] * f["n"] for f in of) / n for key in ("top1", "top5")}}


if __name__ == "__main__":
    sys.exit(main())
