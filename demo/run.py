"""Run the three scripts on a drawn data set, with each method, and end with a table, a picture and a report.

    python -m demo.run [FOLDER]

The classes are new to the demo's tiny CLIP (demo/clip.npz, made by demo/train_clip.py): the names of signs and flocks
are new combinations of words from its training, the shapes and names of things were not in it at all, and four classes
have no training photographs.
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
from jclip.paths import expand

HERE = Path(__file__).parent

METHODS = {"zero-shot": "zero-shot", "tip": "Tip-Adapter", "tip-f": "Tip-Adapter-F", "blend": "blend (default)"}


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--device")
    p.add_argument(
        "folder",
        nargs="?",
        type=expand,
        default=HERE / "build",
        metavar="FOLDER",
        help="where everything is written (default: demo/build)",
    )
    return p.parse_args(argv)


@cli.command
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
        figures[name] = predict(output, a.folder / "result.txt")
    figures["transductive"] = predict(output, a.folder / "transductive.txt", "--transductive")
    pictures = ["--sheet", a.folder / "sheet.png", "--report", a.folder / "report.html", "--data", dataset]
    predict(output, a.folder / "result.txt", *pictures)
    with np.load(output / "support.npz") as support, np.load(output / "text.npz") as text:
        shots = {str(text["names"][label]) for label in support["labels"]}
    print(
        table(figures, shots),
        f"The photographs with their five likeliest classes: {a.folder / 'sheet.png'}",
        f"The report, to be opened in a browser: {a.folder / 'report.html'}",
        sep="\n\n",
    )


def predict(output: Path, result: Path, *options) -> dict:
    """Run predict.py and return the scores of the test photographs."""
    run("predict.py", "--output", output, "--result", result, *options)
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))["test"]


def run(*arguments) -> None:
    """Show a Python command and run it in the project's folder; raise TaskError where it fails."""
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
    """Format top-1 and top-5 of each method in %: over all photographs, groups, classes with and without shots."""
    first = next(iter(figures.values()))
    rows = [("all", lambda f: f)]
    rows += [(group, lambda f, group=group: f["groups"][group]) for group in first["groups"]]
    rows += [
        (title, lambda f, shots=shots: mean(f, lambda name: (name in with_shots) == shots))
        for title, shots in (("classes with shots", True), ("classes without shots", False))
    ]
    lines = [
        " " * 28 + "".join(f"{name:>17}" for name in figures),
        f"{'':20}{'photos':>8}" + f"{'top-1':>10}{'top-5':>7}" * len(figures),
    ]
    for title, select in rows:
        row = [select(f) for f in figures.values()]
        lines.append(
            f"{title:22}{row[0]['n']:6}" + "".join(f"{100 * f['top1']:10.1f}{100 * f['top5']:7.1f}" for f in row)
        )
    return "\n" + "\n".join(lines)


def mean(figures: dict, is_chosen) -> dict:
    """Average top-1 and top-5 over the photographs of the classes for which is_chosen(name) is true."""
    classes = [f for name, f in figures["per_class"].items() if is_chosen(name) and f["n"]]
    n = sum(f["n"] for f in classes)
    return {"n": n, **{key: sum(f[key] * f["n"] for f in classes) / n for key in ("top1", "top5")}}


if __name__ == "__main__":
    sys.exit(main())
