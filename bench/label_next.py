"""What labelling the suggested photographs gives, beside labelling as many at random.

    python -m bench.label_next TASK.npz ... [--folder demo/build/output ...] [--seeds 5] [--write docs/report.md]

Half of the test photographs, drawn by the seed, are the pool from which N are labelled; the other half scores the
classifier before and after. Suggested and random photographs are compared on the same halves. The suggestions
(report/label_next.py) see no label of the pool. N is given as shares of the number of classes.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.accuracy import Task, read
from fewshot import artifacts
from fewshot.artifacts import Split, Support
from fewshot.rows import softmax
from fewshot.task_features import read_features
from jclip.paths import expand
from methods import METHODS, Settings, train
from report.label_next import suggest
from tip_adapter_utils import predict_logits

SHARES = "0.25,0.5,1"  # of the number of classes
MARKS = r"(?<=<!-- label next -->\n).*?(?=<!-- end -->)"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tasks", nargs="*", type=expand, metavar="TASK.npz")
    p.add_argument("--folder", action="append", default=[], type=expand, metavar="DIR", help="an output folder")
    p.add_argument("--method", choices=METHODS, default="blend")
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="halves of the test photographs (default: 5)")
    p.add_argument("--shares", default=SHARES, metavar="LIST", help=f"N / number of classes (default: {SHARES})")
    p.add_argument("--write", type=expand, metavar="FILE", help="put the table into this file")
    a = p.parse_args()
    shares = [float(share) for share in a.shares.split(",")]
    lines = [
        "| task | classes | shots | N | before | at random | suggested | suggested − random |\n",
        "|---" * 8 + "|\n",
    ]
    for task in [*map(read, a.tasks), *map(of_folder, a.folder)]:
        for n, top1 in compare(task, a.method, a.seeds, shares).items():
            lines.append(row(task, n, 100 * np.array(top1)))
            print(lines[-1], end="", flush=True)
    if a.write:
        text = a.write.read_text(encoding="utf-8")
        a.write.write_text(re.sub(MARKS, "".join(lines), text, flags=re.DOTALL), encoding="utf-8")


def of_folder(folder: Path) -> Task:
    """Return the task in an output folder, whose test photographs must have labels."""
    test = artifacts.read(folder / "test.npz", Split)
    return Task(folder.parent.parent.name, *read_features(folder), test)


def compare(
    task: Task, method: str, seeds: int, shares: Sequence[float]
) -> dict[int, list[tuple[float, float, float]]]:
    """Return {N: [(top-1 before, with N at random, with the first N suggested), of each seed]}."""
    found: dict[int, list] = {}
    for seed in range(1, seeds + 1):
        order = np.random.default_rng(seed).permutation(len(task.test.labels))
        pool, rest = np.sort(order[: len(order) // 2]), order[len(order) // 2 :]
        before, probabilities = _trained(task, method, pool[:0], rest, pool)
        sizes = [round(share * len(task.text.names)) for share in shares]
        suggested = pool[suggest(probabilities, task.test.features[pool], sizes[-1])]
        drawn = np.random.default_rng([seed, 1]).permutation(pool)
        for n in sizes:
            top1 = [_trained(task, method, labelled[:n], rest, pool)[0] for labelled in (drawn, suggested)]
            found.setdefault(n, []).append((before, *top1))
    return found


def _trained(task: Task, method: str, labelled: np.ndarray, rest: np.ndarray, pool: np.ndarray):
    """Return top-1 on `rest` after the labelled test photographs have become shots, and probabilities of the pool."""
    features, labels, names = task.test.features, task.test.labels, task.test.names
    views = task.support.features.shape[1]
    support = Support(
        np.concatenate([task.support.features, np.repeat(features[labelled][:, None], views, axis=1)]),
        np.concatenate([task.support.labels, labels[labelled]]),
        np.concatenate([task.support.names, names[labelled]]),
    )
    adapter = train(method, task.text, support, task.val, Settings(device="cpu")).adapter
    top1 = float((predict_logits(adapter, features[rest]).argmax(axis=1) == labels[rest]).mean())
    return top1, softmax(predict_logits(adapter, features[pool]))


def row(task: Task, n: int, top1: np.ndarray) -> str:
    """Return a row of the table, of top-1 (seeds, 3) in %."""
    before, drawn, suggested = top1.mean(axis=0)
    gains = top1[:, 2] - top1[:, 1]
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return (
        f"| {task.name} | {len(task.text.names)} | {len(task.support.labels)} | {n} | {before:.2f} | {drawn:.2f} | "
        f"{suggested:.2f} | {gains.mean():+.2f} ± {error:.2f} ({(gains > 0).sum()} of {len(gains)}) |\n"
    )


if __name__ == "__main__":
    main()
