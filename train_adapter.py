"""Learn a classifier from features: output/text.npz, support.npz and, where there is one, val.npz -> output/adapter.npz.

Needs neither photographs nor CLIP's weights. Settings that are not given here are chosen on the validation rows or,
where there are none, by leaving one shot a class out in turn. Figures and choices are also written to
output/metrics.json.
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import numpy as np

import cli
from fewshot import artifacts, metrics, prompts
from tip_adapter_utils import METHODS, Settings, predict_logits, train


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--output", "--device", "--seed")
    p.add_argument("--method", choices=METHODS, default="tip-f", help="(default: tip-f, Tip-Adapter with fine-tuned keys)")
    p.add_argument("--epochs", type=cli.at_least(1), default=20, metavar="N", help="of tip-f (default: 20)")
    p.add_argument("--lr", type=learning_rate, default=1e-3, metavar="X", help="of tip-f (default: 0.001)")
    return p.parse_args(argv)


def learning_rate(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no learning rate; expected a number above 0")
    return value


@cli.script
def main(argv=None):
    a = parse(argv)
    text, support, val = read_task(a.output)
    started = time.perf_counter()
    adapter, chosen = train(a.method, text, support, val, Settings(a.epochs, a.lr, a.seed, a.device))
    seconds = time.perf_counter() - started
    asked = {"method": a.method, "seed": a.seed, "epochs": a.epochs, "lr": a.lr}
    adapter = replace(adapter, meta={**support.meta, **text.meta, "training": {**asked, "chosen": chosen}})
    figures = {**asked, "chosen": chosen, "seconds": round(seconds, 2), **on_validation(text, support, val, adapter), "meta": adapter.meta}
    artifacts.write(a.output / "adapter.npz", adapter)
    metrics.write_json(a.output / "metrics.json", figures)
    print(*summary(figures), f"{a.output / 'adapter.npz'} and metrics.json: {a.method}, {len(adapter.names)} classes, "
          f"{len(adapter.keys)} shots, {seconds:.1f} s. Next: python predict.py", sep="\n")


def read_task(folder) -> tuple:
    """Text, support and val of one task; val is None without a file, and so are shots none."""
    text = artifacts.read(folder / "text.npz", artifacts.Text)
    none = artifacts.Support(np.zeros((0, 1, text.features.shape[1]), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_))
    support = artifacts.read(folder / "support.npz", artifacts.Support) if (folder / "support.npz").exists() else none
    val = artifacts.read(folder / "val.npz", artifacts.Split) if (folder / "val.npz").exists() else None
    artifacts.check_together(text, support, *[val] * (val is not None))
    return text, support, val


def on_validation(text, support, val, adapter) -> dict:
    """{"val": figures of the adapter on validation rows, and zero-shot's beside them}; empty without labelled rows."""
    if val is None or not (val.labels >= 0).any():
        return {}
    zero_shot, _ = train("zero-shot", text, support, val, Settings())

    def score(adapter) -> dict:
        ranked = metrics.top_classes(predict_logits(adapter, val.features))
        return metrics.score(ranked, val.labels, adapter.names, prompts.groups_of(text))

    return {"val": {**score(adapter), "zero_shot": score(zero_shot)}}


def summary(figures: dict) -> list[str]:
    """Lines that say what a user wants to know: is it better than no training, and what was chosen how."""
    chosen, lines = figures["chosen"], []
    if "val" in figures:
        for name, score in {"zero-shot": figures["val"]["zero_shot"], figures["method"]: figures["val"]}.items():
            lines.append(f"validation: {name:9} top-1 {score['top1']:.1%}, top-5 {score['top5']:.1%} of {score['n']} rows")
    elif "top1" in chosen:
        lines.append(f"shots left out in turn: zero-shot top-1 {chosen['zero_shot_top1']:.1%}, "
                     f"{figures['method']} {chosen['top1']:.1%} of {chosen['rows']}")
    if "new_top1" in chosen:
        lines.append(f"shots of some classes hidden in turn: top-1 {chosen['base_top1']:.1%} on the others, {chosen['new_top1']:.1%} on them")
    values = [f"{name} {chosen[name]:.4g}" for name in ("alpha", "beta", "epoch") if name in chosen]
    return [*lines, f"chosen: {', '.join(values)} ({chosen['how']})"] if values else lines


if __name__ == "__main__":
    sys.exit(main())
