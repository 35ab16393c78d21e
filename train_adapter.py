"""Learn a classifier from features: output/text.npz, support.npz and, where there is one, val.npz ->
output/adapter.npz.

Needs neither photographs nor CLIP's weights. Settings that are not given here are chosen on the validation rows or,
where there are none, by leaving some shots of each class out in turn. Figures and choices are also written to
output/metrics.json and metrics.csv.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from fewshot import artifacts, cli
from fewshot.errors import TaskError
from fewshot.task_features import has_labels, read_features
from methods import METHODS, Settings, methods_with, train
from report import metrics
from report.evaluation import score_beside_baselines, score_draws
from report.training import summary


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--output", "--device", "--seed")
    p.add_argument(
        "--method",
        choices=METHODS,
        default="blend",
        help="(default: blend, of zero-shot, text-anchored regression and Gaussian discriminants, with a tuned cache)",
    )
    p.add_argument("--epochs", type=cli.whole_number(1), metavar="N", help="tip-f: epochs (default: 20)")
    p.add_argument("--lr", type=learning_rate, metavar="X", help="tip-f: learning rate (default: 0.001)")
    p.add_argument(
        "--refit",
        action="store_true",
        help="blend: once all settings are chosen, learn from the validation rows, too; not for a task that limits "
        "the shots",
    )
    p.add_argument(
        "--seeds",
        type=cli.whole_number(1),
        default=1,
        metavar="N",
        help="repeat with other shots and views, and print mean and standard deviation (default: 1)",
    )
    a = p.parse_args(argv)
    options = METHODS[a.method].options
    if a.refit and "refit" not in options:
        p.error(f"--refit is for --method {' or '.join(methods_with('refit'))}, not for {a.method}")
    if (a.epochs or a.lr) and "epochs" not in options:
        takers = " or ".join(methods_with("epochs"))
        print(f"--epochs and --lr are for --method {takers}; {a.method} goes without", file=sys.stderr)
    a.epochs, a.lr = a.epochs or Settings.epochs, a.lr or Settings.lr
    return a


def learning_rate(text: str) -> float:
    """Parse a finite number above 0, as an argparse type."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no learning rate; expected a number above 0")
    return value


@cli.command
def main(argv=None):
    a = parse(argv)
    if not a.output.is_dir():  # checked here, since the lock creates the folder
        raise TaskError(f"no {a.output / 'text.npz'}; run extract_feature.py first, or name its folder with --output")
    with cli.locked(a.output):
        learn(a.output, a.method, Settings(a.epochs, a.lr, a.seed, a.device), refit=a.refit, seeds=a.seeds)


def learn(folder: Path, method: str, settings: Settings, *, refit: bool = False, seeds: int = 1) -> None:
    """Train a method on the task in a folder, write adapter.npz and metrics there, and print a summary.

    Parameters
    ----------
    folder : Path
    method : str
        A key of METHODS.
    settings : Settings
    refit : bool
        Learn again from shots and validation rows after settings are chosen; the scores are of the adapter before.
    seeds : int
        If more than 1, also score this many draws of the shots.

    Raises
    ------
    TaskError
        If a file is missing or damaged, or `refit` or `seeds` need validation rows and there are none.
    """
    task = read_features(folder)
    check_validation(task.val, folder / "val.npz", refit, seeds)
    started = time.perf_counter()
    outcome = train(method, *task, settings)
    adapter = outcome.refit(*task) if refit else outcome.adapter
    seconds = time.perf_counter() - started
    options = {"epochs": settings.epochs, "lr": settings.lr, "refit": refit}
    requested = {"method": method, "seed": settings.seed, **{name: options[name] for name in METHODS[method].options}}
    chosen = outcome.record()
    meta = {**task.support.meta, **task.text.meta, "training": {**requested, "chosen": chosen}}
    results = {**requested, "chosen": chosen, "seconds": round(seconds, 2)}
    if has_labels(task.val):
        results["val"] = score_beside_baselines(outcome.adapter, task, settings)
    if seeds > 1:
        results["seeds"] = score_draws(method, task, settings, seeds)
    artifacts.write(folder / "adapter.npz", replace(adapter, meta=meta))
    metrics.write(folder, {**results, "meta": meta})
    print(
        *summary(results),
        f"{folder / 'adapter.npz'}, metrics.json and metrics.csv: {method}, {len(adapter.names)} classes, "
        f"{len(task.support.labels)} shots, {seconds:.1f} s. Next: python predict.py",
        sep="\n",
    )


def check_validation(val: artifacts.Split | None, path: Path, refit: bool, seeds: int) -> None:
    """Raise TaskError if `refit` or `seeds` need labelled validation rows and val, read from `path`, has none."""
    if has_labels(val):
        return
    if refit:
        raise TaskError(
            f"--refit learns from the validation photographs, and {path} holds no labelled rows; leave it out"
        )
    if seeds > 1:
        raise TaskError(
            f"--seeds {seeds} draws other shots from {path}, which holds no labelled rows; "
            "extract features of more training photographs than shots, or leave --seeds out"
        )


if __name__ == "__main__":
    sys.exit(main())
