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

import numpy as np

from fewshot import artifacts, cli, prompts
from fewshot.errors import TaskError
from fewshot.support import redraw
from methods.blend import refitted
from report import metrics
from tip_adapter_utils import METHODS, Settings, predict_logits, train

BESIDE = ("zero-shot", "tip", "gda")  # methods that take seconds, to compare the chosen one with


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--output", "--device", "--seed")
    p.add_argument(
        "--method",
        choices=METHODS,
        default="blend",
        help="(default: blend, of zero-shot, text-anchored regression and Gaussian discriminants)",
    )
    p.add_argument("--epochs", type=cli.at_least(1), metavar="N", help="tip-f: epochs (default: 20)")
    p.add_argument("--lr", type=learning_rate, metavar="X", help="tip-f: learning rate (default: 0.001)")
    p.add_argument(
        "--refit",
        action="store_true",
        help="blend: once all settings are chosen, learn from the validation rows, too; not for a task that limits "
        "the shots",
    )
    p.add_argument(
        "--seeds",
        type=cli.at_least(1),
        default=1,
        metavar="N",
        help="repeat with other shots and views, and print mean and standard deviation (default: 1)",
    )
    a = p.parse_args(argv)
    if a.refit and a.method != "blend":
        p.error(f"--refit is for --method blend, not for {a.method}")
    if a.method != "tip-f" and (a.epochs or a.lr):
        print(f"--epochs and --lr are for --method tip-f; {a.method} goes without", file=sys.stderr)
    a.epochs, a.lr = a.epochs or Settings.epochs, a.lr or Settings.lr
    return a


def learning_rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no learning rate; expected a number above 0")
    return value


@cli.script
def main(argv=None):
    a = parse(argv)
    if not a.output.is_dir():  # which the lock would make
        raise TaskError(f"no {a.output / 'text.npz'}; run extract_feature.py first, or name its folder with --output")
    with cli.locked(a.output):
        learn(a)


def learn(a) -> None:
    """Train, compare, write adapter.npz and the figures, say what came out."""
    text, support, val = read_features(a.output)
    if a.refit and not labelled(val):
        raise TaskError(
            f"--refit learns from the validation photographs, and {a.output / 'val.npz'} holds no labelled rows; "
            f"leave it out"
        )
    if a.seeds > 1 and not labelled(val):
        raise TaskError(
            f"--seeds {a.seeds} draws other shots from {a.output / 'val.npz'}, which holds no labelled rows; "
            "extract features of more training photographs than shots, or leave --seeds out"
        )
    settings = Settings(a.epochs, a.lr, a.seed, a.device)
    started = time.perf_counter()
    judged, chosen = train(a.method, text, support, val, settings)
    adapter = (
        refitted(text, support, val, chosen) if a.refit else judged
    )  # figures are of one that has not seen the validation rows
    seconds = time.perf_counter() - started
    asked = {"method": a.method, "seed": a.seed}
    if a.method == "tip-f":
        asked.update(epochs=a.epochs, lr=a.lr)
    if a.method == "blend":
        asked.update(refit=a.refit)
    adapter = replace(adapter, meta={**support.meta, **text.meta, "training": {**asked, "chosen": chosen}})
    figures = {
        **asked,
        "chosen": chosen,
        "seconds": round(seconds, 2),
        **on_validation(text, support, val, judged, settings),
        **repeated(a, text, support, val, settings),
        "meta": adapter.meta,
    }
    artifacts.write(a.output / "adapter.npz", adapter)
    metrics.write(a.output, figures)
    print(
        *summary(figures),
        f"{a.output / 'adapter.npz'}, metrics.json and metrics.csv: {a.method}, {len(adapter.names)} classes, "
        f"{len(support.labels)} shots, {seconds:.1f} s. Next: python predict.py",
        sep="\n",
    )


def read_features(folder) -> tuple:
    """Text, support and val of one task; val is None without a file, and so are shots none."""
    text = artifacts.read(folder / "text.npz", artifacts.Text)
    none = artifacts.Support(
        np.zeros((0, 1, text.features.shape[1]), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_)
    )
    support = artifacts.read(folder / "support.npz", artifacts.Support) if (folder / "support.npz").exists() else none
    val = artifacts.read(folder / "val.npz", artifacts.Split) if (folder / "val.npz").exists() else None
    artifacts.check_together(text, support, *[val] * (val is not None))
    return text, support, val


def labelled(val) -> bool:
    """Whether there are validation rows whose class is known."""
    return val is not None and bool((val.labels >= 0).any())


def on_validation(text, support, val, adapter, settings) -> dict:
    """{"val": figures of the adapter on validation rows, with those of other methods beside them}; empty without
    labelled rows."""
    if not labelled(val):
        return {}

    def score(adapter) -> dict:
        return metrics.score(predict_logits(adapter, val.features), val.labels, adapter.names, prompts.groups_of(text))

    others = [name for name in BESIDE if name != adapter.method and (len(support.labels) or name == "zero-shot")]
    beside = {name: score(train(name, text, support, val, settings)[0]) for name in others}
    return {
        "val": {
            **score(adapter),
            "beside": {
                name: {key: one[key] for key in ("n", "top1", "top5", "calibration_error")}
                for name, one in beside.items()
            },
        }
    }


def repeated(a, text, support, val, settings) -> dict:
    """{"seeds": top-1 and top-5 of each repetition on its validation rows}; empty where none is asked for."""
    if a.seeds == 1:
        return {}
    found = []
    for seed in range(a.seed, a.seed + a.seeds):
        shots, rest = redraw(support, val, seed)
        adapter, _ = train(a.method, text, shots, rest, replace(settings, seed=seed))
        one = metrics.score(predict_logits(adapter, rest.features), rest.labels, adapter.names, prompts.groups_of(text))
        found.append({"seed": seed, "n": one["n"], "top1": one["top1"], "top5": one["top5"]})
    return {"seeds": found}


def summary(figures: dict) -> list[str]:
    """Lines that say what a user wants to know: is it better than no training, and what was chosen how."""
    chosen, lines = figures["chosen"], []
    if "val" in figures:
        val = figures["val"]
        lines.append(
            f"{val['n']} validation rows, on which choices were made:  top-1   top-5   calibration error"
            + "   (before they were learned from)" * figures.get("refit", False)
        )
        lines += [
            f"  {name:10} {score['top1']:39.1%} {score['top5']:7.1%} {score['calibration_error']:10.1%}"
            for name, score in {**val["beside"], figures["method"]: val}.items()
        ]
    elif "top1" in chosen:
        lines.append(
            f"shots left out in turn: zero-shot top-1 {chosen['zero_shot_top1']:.1%}, "
            f"{figures['method']} {chosen['top1']:.1%} of {chosen['rows']}"
        )
    if "new_top1" in chosen:
        lines.append(
            f"shots of some classes hidden in turn: top-1 {chosen['base_top1']:.1%} on the others, "
            f"{chosen['new_top1']:.1%} on them"
        )
    if "seeds" in figures:
        tops = [[100 * one[key] for one in figures["seeds"]] for key in ("top1", "top5")]
        lines.append(
            f"{len(tops[0])} draws of shots: top-1 {np.mean(tops[0]):.2f} ± {np.std(tops[0]):.2f} %, top-5 "
            f"{np.mean(tops[1]):.2f} ± {np.std(tops[1]):.2f} %"
        )
    return [*lines, f"chosen {chosen['how']}: {', '.join(choices(chosen))}"] if choices(chosen) else lines


def choices(chosen: dict) -> list[str]:
    """What was chosen, in words; of a blend's experts those that have a weight."""
    said = [f"{name} {chosen[name]:.4g}" for name in ("alpha", "beta", "lambda", "epoch") if name in chosen]
    said += [f"{weight:.3g} x {name}" for name, weight in chosen.get("weights", {}).items() if weight > 1e-6]
    if "alike" in chosen:
        said.append(f"{chosen['alike']} of {chosen['classes_without_shots']} classes without shots are of a known kind")
    return said


if __name__ == "__main__":
    sys.exit(main())
