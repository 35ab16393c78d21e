"""Top-1 and top-5 of every method on feature tasks, with few validation rows, and of classes without shots.

It makes the tables of docs/accuracy.md.

    python -m bench.accuracy TASK.npz ... [--methods blend,tip-f] [--seeds 3] [--write docs/accuracy.md]

A task holds train_features (N, D), val_features, test_features with their labels, and text (C, D), all of unit norm.
Methods see the training and validation rows; test labels are looked at once, for the figures. Methods that draw at
random are run with several seeds. With --write the tables replace those of the file, between its marks.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.transclip import transclip
from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.rows import index_in_class, softmax, subset, unit_rows
from jclip.paths import expand
from methods import METHODS, Settings, train
from methods.transduction import transduce
from report import metrics
from tip_adapter_utils import predict_logits

DRAWING = ("tip-f", "taskres", "clap")  # methods that depend on the seed
HIDING = ("zero-shot", "tip", "tip-f", "gda", "blend")
HIDDEN_SEED = 5
FEW_METHODS = ("zero-shot", "tip", "gda", "blend")  # fast ones, for many small tasks
SMALL_CLASSES, SMALL_DRAWS = 24, 20  # classes of a small task, and how many of them are drawn
TAIL, TAIL_DRAWS = 20, 3  # how much more frequent the first class of a long-tailed test set is than the last; draws


class Task(NamedTuple):
    name: str
    text: Text
    support: Support
    val: Split | None
    test: Split


class NewClasses(NamedTuple):
    task: Task
    labels: np.ndarray  # of the classes that have no shots


class Predicted(NamedTuple):
    logits: np.ndarray  # of the test rows
    seconds: float  # that training took
    adapter: Adapter


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("tasks", nargs="+", type=expand, metavar="TASK.npz")
    p.add_argument("--methods", default=",".join(METHODS), metavar="LIST")
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="of methods that draw at random (default: 3)")
    p.add_argument("--write", type=expand, metavar="FILE", help="put the tables into this file")
    a = p.parse_args()
    methods = a.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        p.error(f"no method {', '.join(sorted(unknown))}; expected some of {','.join(METHODS)}")
    if a.write and not a.write.is_file():  # found now, not after hours
        p.error(f"no {a.write}")
    tasks = [read(path) for path in a.tasks]
    tables = {"all": compare(tasks, methods, a.seeds)}
    if without_val := [task._replace(val=None) for task in tasks if task.name.endswith("_4")]:
        tables["no validation"] = compare(without_val, methods, a.seeds)
    if small := [task for task in tasks if task.name.endswith("_4")]:
        tables["few rows"] = few_rows(small, [method for method in FEW_METHODS if method in methods])
    if "blend" in methods:
        tables["transductive"], tables["long tail"] = transductive(tasks)
    named, hiding = {task.name: task for task in tasks}, [method for method in HIDING if method in methods]
    if hiding and {"sun397_4", "cars_4"} <= named.keys():
        tables["same kind"] = new_classes(hidden(named["sun397_4"], 97), hiding)
        tables["another kind"] = new_classes(beside(named["sun397_4"], named["cars_4"]), hiding)
    if a.write:
        text = a.write.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = re.sub(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", table.replace("\\", r"\\"), text, flags=re.S)
        a.write.write_text(text, encoding="utf-8")


def read(path: Path) -> Task:
    with np.load(path) as file:
        part = {name: file[name] for name in file.files}
    rows = {name: unit_rows(part[f"{name}_features"].astype(np.float32)) for name in ("train", "val", "test")}
    labels = {name: part[f"{name}_labels"].astype(np.int64) for name in rows}
    names = {name: np.array([f"{name} {i}" for i in range(len(rows[name]))]) for name in rows}
    text = Text(
        unit_rows(part["text"].astype(np.float32)), np.array([str(name) for name in part["class_names"]]), 100.0
    )
    return Task(
        path.stem,
        text,
        Support(rows["train"][:, None], labels["train"], names["train"]),
        Split(rows["val"], labels["val"], names["val"]),
        Split(rows["test"], labels["test"], names["test"]),
    )


def compare(tasks: list[Task], methods: list[str], seeds: int) -> str:
    """A row a task, a column a method: top-1 (± its standard deviation over seeds) / top-5; and the seconds, in the
    mean."""
    lines = ["| task | " + " | ".join(methods) + " |\n", "|---" * (len(methods) + 1) + "|\n"]
    means, seconds = [], {method: [] for method in methods}
    for task in tasks:
        cells, row = [], []
        for method in methods:
            scores = []
            for seed in range(1, 1 + (seeds if method in DRAWING else 1)):
                logits, took, _ = predicted(method, task, seed)
                figures = metrics.score(logits, task.test.labels, task.text.names, task.text.names)
                scores.append((100 * figures["top1"], 100 * figures["top5"]))
                seconds[method].append(took)
            (top1, top5), deviation = np.mean(scores, axis=0), np.std(scores, axis=0)[0]
            row.append(top1)
            cells.append(f"{top1:.2f}" + (f" ± {deviation:.2f}" if len(scores) > 1 else "") + f" / {top5:.1f}")
            print(f"{task.name:10} {method:10} {cells[-1]}   {took:.1f} s", flush=True)
        means.append(row)
        lines.append(f"| {task.name} | " + " | ".join(cells) + " |\n")
    lines.append("| **mean** | " + " | ".join(f"**{mean:.2f}**" for mean in np.mean(means, axis=0)) + " |\n")
    lines.append("| seconds | " + " | ".join(f"{np.mean(seconds[method]):.1f}" for method in methods) + " |\n")
    return "".join(lines)


def predicted(method: str, task: Task, seed: int = 1) -> Predicted:
    started = time.perf_counter()
    outcome = train(method, task.text, task.support, task.val, Settings(seed=seed, device="cpu"))
    seconds = time.perf_counter() - started
    return Predicted(predict_logits(outcome.adapter, task.test.features), seconds, outcome.adapter)


# ---- few validation rows ----


def few_rows(tasks: list[Task], methods: list[str]) -> str:
    """Return a table: a row for each task, number of shots and of validation rows per class, over small tasks.

    The columns of a method are its mean top-1, and for all but zero-shot the worst difference to zero-shot.
    """
    heads = [methods[0], *(f"{method} (worst to zero-shot)" for method in methods[1:])]
    lines = [f"| task | shots | rows | {' | '.join(heads)} |\n", "|---" * (3 + len(methods)) + "|\n"]
    for task, shots, rows in itertools.product(tasks, (1, 4), (1, 2)):
        rng = np.random.default_rng(1)
        top1 = np.array(
            [_top1_of(small_task(task, SMALL_CLASSES, shots, rows, rng), methods) for _ in range(SMALL_DRAWS)]
        )
        worst = (top1 - top1[:, :1]).min(axis=0)
        cells = [
            f"{mean:.2f}" + (f" ({low:+.1f})" if i else "") for i, (mean, low) in enumerate(zip(top1.mean(0), worst))
        ]
        lines.append(f"| {task.name} | {shots} | {rows} | {' | '.join(cells)} |\n")
        print(lines[-1], end="", flush=True)
    return "".join(lines)


def _top1_of(task: Task, methods: list[str]) -> list[float]:
    return [100 * (predicted(method, task).logits.argmax(axis=1) == task.test.labels).mean() for method in methods]


def small_task(task: Task, n_classes: int, shots: int, rows: int, rng: np.random.Generator) -> Task:
    """Draw classes of a task, and as many shots and validation rows of each; all their test rows stay."""
    classes = rng.permutation(len(task.text.names))[:n_classes]
    number = np.full(len(task.text.names), -1)
    number[classes] = np.arange(n_classes)

    def draw(labels, n):
        drawn = rng.permutation(np.flatnonzero(number[labels] >= 0))
        return drawn[index_in_class(labels[drawn]) < n]

    def part(split, rows):
        return Split(split.features[rows], number[split.labels[rows]], split.names[rows])

    support = subset(task.support, draw(task.support.labels, shots))
    return Task(
        task.name,
        Text(task.text.features[classes], task.text.names[classes], task.text.scale),
        Support(support.features, number[support.labels], support.names),
        part(task.val, draw(task.val.labels, rows)),
        part(task.test, draw(task.test.labels, len(task.test.labels))),
    )


# ---- test rows that help to classify each other ----


def transductive(tasks: list[Task]) -> tuple[str, str]:
    """Two tables, a row a task: top-1 of the test rows as they are, and of long-tailed draws from them, in the mean."""
    heads = ["blend", "`--transductive`", "`--transductive balanced`"]
    whole, tails, seconds = [], [], []
    for task in tasks:
        logits, _, adapter = predicted("blend", task)
        zero_shot = task.text.scale * (task.test.features @ task.text.features.T)
        started = time.perf_counter()
        found = _top1_together(adapter, task)
        seconds.append((time.perf_counter() - started) / 2)
        peers = [transclip(softmax(start), task.test, task.support, task.val) for start in (zero_shot, logits)]
        whole.append(found + [_top1(peer, task.test) for peer in peers])
        drawn = [task._replace(test=long_tailed(task.test, seed)) for seed in range(1, 1 + TAIL_DRAWS)]
        tails.append(np.mean([_top1_together(adapter, draw) for draw in drawn], axis=0))
        print(f"{task.name:10} together: {np.round(whole[-1], 2)}, long-tailed {np.round(tails[-1], 2)}", flush=True)
    names = [task.name for task in tasks]
    table = _table(names, heads + ["TransCLIP on zero-shot", "TransCLIP on blend"], whole)
    return table + f"| seconds | | {np.mean(seconds):.1f} | | | |\n", _table(names, heads, tails)


def _top1_together(adapter: Adapter, task: Task) -> list[float]:
    ways = (transduce(adapter, task.test, task.support, task.val, balanced).logits for balanced in (False, True))
    return [_top1(logits, task.test) for logits in (predict_logits(adapter, task.test.features), *ways)]


def _top1(logits: np.ndarray, test: Split) -> float:
    return 100 * float((logits.argmax(axis=1) == test.labels).mean())


def _table(names: list[str], heads: list[str], rows: list) -> str:
    lines = ["| task | " + " | ".join(heads) + " |\n", "|---" * (len(heads) + 1) + "|\n"]
    lines += [f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in row) + " |\n" for name, row in zip(names, rows)]
    return "".join(lines) + "| **mean** | " + " | ".join(f"**{x:.2f}**" for x in np.mean(rows, axis=0)) + " |\n"


def long_tailed(test: Split, seed: int) -> Split:
    """Draw rows such that class sizes fall in equal steps of their logarithm, from all rows to one of TAIL."""
    rng, sizes = np.random.default_rng(seed), np.bincount(test.labels)
    share = TAIL ** -(rng.permutation(len(sizes)) / (len(sizes) - 1))
    order = rng.permutation(len(test.labels))
    kept = np.sort(
        order[index_in_class(test.labels[order]) < np.maximum(1, np.round(sizes * share))[test.labels[order]]]
    )
    return Split(test.features[kept], test.labels[kept], test.names[kept])


# ---- classes without shots ----


def hidden(task: Task, n: int) -> NewClasses:
    """The task without the shots and validation rows of n of its classes, drawn at random."""
    new = np.sort(np.random.default_rng(HIDDEN_SEED).permutation(len(task.text.names))[:n])
    shots, val = ~np.isin(task.support.labels, new), ~np.isin(task.val.labels, new)
    hidden = task._replace(
        support=subset(task.support, shots),
        val=Split(*(part[val] for part in (task.val.features, task.val.labels, task.val.names))),
    )
    return NewClasses(hidden, new)


def beside(task: Task, other: Task) -> NewClasses:
    """The task with the classes of another, and their test rows, added: known by their texts alone."""
    classes = len(task.text.names)
    text = Text(
        np.concatenate([task.text.features, other.text.features]),
        np.concatenate([task.text.names, other.text.names]),
        100.0,
    )
    test = Split(
        np.concatenate([task.test.features, other.test.features]),
        np.concatenate([task.test.labels, other.test.labels + classes]),
        np.concatenate([task.test.names, other.test.names]),
    )
    return NewClasses(task._replace(text=text, test=test), classes + np.arange(len(other.text.names)))


def new_classes(case: NewClasses, methods: list[str]) -> str:
    """A row a method: top-1 of classes with shots (and among these alone), of those without, harmonic mean, all."""
    task, new = case
    is_new = np.isin(task.test.labels, new)
    lines = ["| method | with shots | among these alone | without | harmonic mean | all |\n", "|---" * 6 + "|\n"]
    for name, logits in _of_all_classes(task, methods):
        right = logits.argmax(axis=1) == task.test.labels
        logits[:, new] = -np.inf
        alone = (logits.argmax(axis=1) == task.test.labels)[~is_new]
        base, without = 100 * right[~is_new].mean(), 100 * right[is_new].mean()
        lines.append(
            f"| {name} | {base:.1f} | {100 * alone.mean():.1f} | {without:.1f} | "
            f"{2 * base * without / (base + without):.1f} | {100 * right.mean():.1f} |\n"
        )
        print(lines[-1], end="", flush=True)
    return "".join(lines)


def _of_all_classes(task: Task, methods: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the logits of each method, and those of blend on test rows that help each other."""
    for method in methods:
        logits, _, adapter = predicted(method, task)
        yield method, logits
        if method == "blend":
            yield "blend, `--transductive`", transduce(adapter, task.test, task.support, task.val).logits


if __name__ == "__main__":
    main()
