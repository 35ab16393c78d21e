"""The content of the report as plain dicts and lists, which become report.json and the page.

Classes, shots and photographs are referred to by their numbers: a class by its label, as in result.txt, the others by
their row in support.npz, val.npz or test.npz ("set" and "row").
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

import jclip
from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.errors import TaskError
from fewshot.prompts import class_groups, display_names
from fewshot.rows import softmax
from fewshot.task_features import TaskFeatures, has_labels, read_labelled
from jclip import bounded
from jclip.paths import expand
from methods import METHODS, Settings, train
from tip_adapter_utils import predict_logits

from . import copies, label_next, metrics, suspects
from .evaluation import BASELINES
from .evidence import Evidence

FORMAT = 1  # of report.json
PAIR_PHOTOS = 12  # photographs behind a confused pair
CONFIDENCE_BINS = 10
SURE, UNSURE = 0.9, 0.5  # confidences from which, and below which, the page says how often answers are right
MAX_ANSWERS = 20  # classes among "how varied the answers are"
COMPARED = ("n", "top1", "top5", "calibration_error")
VERSIONS = ("numpy", "scipy", "Pillow", "jittor")


class Answers(NamedTuple):
    """What a report is about."""

    adapter: Adapter
    test: Split
    logits: np.ndarray  # float32 (T, C), of the test photographs
    support: Support  # may hold no shots
    val: Split | None
    figures: dict  # metrics.json of this adapter, or {}
    transductive: dict | None = None  # how the test photographs helped each other, if they did


def collect(
    folder: Path, adapter: Adapter, test: Split, logits: np.ndarray, transductive: dict | None = None
) -> Answers:
    """Return the Answers of an adapter, with what else is in its folder: shots, validation rows, metrics.json.

    Raises
    ------
    TaskError
        If support.npz or val.npz is damaged, or is of another task than the adapter, or a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise TaskError("the adapter gives logits that are not finite; run train_adapter.py again")
    support, val = read_labelled(folder, adapter, test)
    figures = _figures(expand(folder) / "metrics.json", adapter)
    return Answers(adapter, test, logits, support, val, figures, transductive)


def _figures(path: Path, adapter: Adapter) -> dict:
    """Return metrics.json if training wrote it with this adapter; {} if it is missing, damaged or of another."""
    try:
        figures = bounded.json_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_own = isinstance(figures, dict) and figures.get("meta") == adapter.meta
    return figures if is_own and isinstance(figures.get("val", {}), dict) else {}


def summary(answers: Answers) -> dict:
    """Return all of the report but the test photographs one by one (`photographs`)."""
    train_rows = suspects.training(answers.support, answers.val)
    evidence = Evidence(answers.adapter, answers.support)
    return {
        "format": FORMAT,
        "about": _about(answers),
        "classes": _classes(answers),
        "splits": _splits(answers),
        "confidence": _confidence(answers.logits),
        "evidence": {"kind": evidence.kind, "alpha": answers.adapter.alpha, "beta": answers.adapter.beta},
        "shots": [[str(name), int(label)] for name, label in zip(answers.support.names, answers.support.labels)],
        "unreadable": [[name, bounded.one_line(why)] for name, why in answers.test.meta.get("unreadable", {}).items()],
        "suspects": {
            "labels": suspects.labels(train_rows, answers.adapter),
            "copies": copies.find(train_rows, answers.test),
            "classes": suspects.classes(train_rows, answers.adapter),
            "names": suspects.names(train_rows, answers.adapter),
        },
        "label_next": _label_next(answers),
    }


def photographs(answers: Answers, rows: Sequence[int] | None = None) -> Iterator[dict]:
    """Yield the answer to each test photograph, or to those of the given rows, and what speaks for it."""
    rows = range(len(answers.test.names)) if rows is None else rows
    evidence = Evidence(answers.adapter, answers.support)
    features, logits = answers.test.features, answers.logits
    if not isinstance(rows, range):
        features, logits = features[list(rows)], logits[list(rows)]
    for row, answer in zip(rows, evidence.answers(features, logits)):
        yield {
            "row": int(row),
            "name": str(answers.test.names[row]),
            "label": int(answers.test.labels[row]),
            "top": _rounded(answer.top),
            "text": _rounded(answer.text),
            "shots": [_rounded(shots) for shots in answer.shots],
            **({"lead": [round(part, 3) for part in answer.lead]} if answer.lead else {}),
        }


def _rounded(pairs: list[tuple[int, float]]) -> list[list]:
    return [[number, float(f"{value:.4g}")] for number, value in pairs]


# ---- what made it ----


def _about(answers: Answers) -> dict:
    meta = {key: value for key, value in answers.adapter.meta.items() if key not in ("groups", "unreadable")}
    return {
        "method": answers.adapter.method,
        "program": f"jittor-tip-adapter {jclip.__version__}",
        "versions": {"Python": platform.python_version(), **_versions()},
        "shots": len(answers.support.labels),
        "val": 0 if answers.val is None else len(answers.val.labels),
        "test": len(answers.test.labels),
        "labelled": int((answers.test.labels >= 0).sum()),
        "made_by": meta,
        **({"transductive": answers.transductive} if answers.transductive else {}),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _classes(answers: Answers) -> list[dict]:
    adapter = answers.adapter
    shots = np.bincount(answers.support.labels, minlength=len(adapter.names))
    rows = zip(adapter.names, display_names(adapter), class_groups(adapter), shots)
    return [
        {"name": str(name), "display": str(display), "group": str(group), "shots": int(n)}
        for name, display, group, n in rows
    ]


# ---- how good it is ----


def _splits(answers: Answers) -> dict[str, dict]:
    """Return the scores of each split with labels, "test" first."""
    found = {}
    if has_labels(answers.test):
        found["test"] = {**_scores(answers, answers.test, answers.logits), "beside": _beside_test(answers)}
    if has_labels(answers.val):
        trained_on = bool(answers.figures.get("refit"))  # then scores of val say nothing, and metrics.json has others
        if not trained_on:
            scores = _scores(answers, answers.val, predict_logits(answers.adapter, answers.val.features))
            found["val"] = {**scores, "beside": answers.figures.get("val", {}).get("beside", {})}
    return found


def _scores(answers: Answers, split: Split, logits: np.ndarray) -> dict:
    adapter = answers.adapter
    scores = metrics.score(logits, split.labels, adapter.names, class_groups(adapter))
    known = np.flatnonzero(split.labels >= 0)
    bins = metrics.reliability(logits[known], split.labels[known])
    predicted = metrics.top_classes(logits[known], 1)[:, 0]
    by_text = metrics.top_classes(split.features[known] @ adapter.text.T, 1)[:, 0] == split.labels[known]
    hits, counts = (
        np.bincount(split.labels[known], weights, len(adapter.names)) for weights in (by_text.astype(float), None)
    )
    per_class = list(scores.pop("per_class").values())
    for row, right, n in zip(per_class, hits, counts):
        row["zero_shot"] = float(right / n) if n else None
    wrong = predicted != split.labels[known]
    pairs = np.unique(np.stack([split.labels[known], predicted])[:, wrong], axis=1, return_counts=True)[1]
    listed = scores["confused"]
    return {
        **scores,
        "per_class": per_class,
        # of how many pairs those listed are the first, and how many of the others are as frequent as the last
        "confused_of": {
            "pairs": len(pairs),
            "ties": int((pairs == listed[-1]["n"]).sum()) - sum(pair["n"] == listed[-1]["n"] for pair in listed)
            if listed
            else 0,
        },
        "trust": _trust(logits[known], ~wrong),
        "confused": _confused(scores["confused"], adapter, split, logits),
        "reliability": [
            {"n": int(n), "confidence": float(confidence / n), "accuracy": float(correct / n)}
            for n, confidence, correct in zip(*bins)
            if n
        ],
    }


def _trust(logits: np.ndarray, right: np.ndarray) -> dict:
    """Return how often answers were right beside their confidence: all of them, the sure ones, the unsure ones."""
    confidence = softmax(logits).max(axis=1)
    sure, unsure = confidence >= SURE, confidence < UNSURE
    return {
        "n": len(right),
        "confidence": float(confidence.mean()),
        "right": float(right.mean()),
        # standard deviation of the share of right answers, if each were right as often as its confidence says
        "noise": float(np.sqrt((confidence * (1 - confidence)).sum()) / len(right)),
        "sure": {"n": int(sure.sum()), "right": int(right[sure].sum())},
        "unsure": {"n": int(unsure.sum()), "right": int(right[unsure].sum())},
    }


def _confused(pairs: list[dict], adapter: Adapter, split: Split, logits: np.ndarray) -> list[dict]:
    """Return the confused pairs by label, with the rows behind each, the most confident mistakes first."""
    label_of = {str(name): label for label, name in enumerate(adapter.names)}
    predicted = metrics.top_classes(logits, 1)[:, 0]
    confidence, found = softmax(logits).max(axis=1), []
    for pair in pairs:
        true, taken_for = label_of[pair["is"]], label_of[pair["taken_for"]]
        rows = np.flatnonzero((split.labels == true) & (predicted == taken_for))
        rows = rows[np.argsort(-confidence[rows], kind="stable")[:PAIR_PHOTOS]]
        shown = [{"row": int(row), "name": str(split.names[row])} for row in rows]
        found.append({"is": true, "taken_for": taken_for, "n": pair["n"], "photographs": shown})
    return found


def _beside_test(answers: Answers) -> dict[str, dict]:
    """Return the scores of the baselines on the test photographs, each trained as train_adapter.py would."""
    adapter, has_shots = answers.adapter, len(answers.support.labels) > 0
    text = Text(adapter.text, adapter.names, adapter.scale, adapter.meta)
    training = adapter.meta.get("training")
    seed = training.get("seed", Settings.seed) if isinstance(training, dict) else Settings.seed
    task, settings = TaskFeatures(text, answers.support, answers.val), Settings(seed=seed, device="cpu")
    beside = {}
    for name in BASELINES:
        if name != adapter.method and (has_shots or not METHODS[name].needs_shots):
            logits = predict_logits(train(name, *task, settings).adapter, answers.test.features)
            scores = metrics.score(logits, answers.test.labels, adapter.names, class_groups(adapter))
            beside[name] = {key: scores[key] for key in COMPARED}
    return beside


def _confidence(logits: np.ndarray) -> dict:
    """Return how confident and how varied the answers are, which needs no labels."""
    probabilities = softmax(logits)
    confidence, predicted = probabilities.max(axis=1), metrics.top_classes(logits, 1)[:, 0]
    counts = np.bincount(predicted, minlength=logits.shape[1])
    share = counts[counts > 0] / max(1, len(logits))
    often = np.argsort(-counts, kind="stable")[:MAX_ANSWERS]
    return {
        "mean": float(confidence.mean()) if len(logits) else None,
        "histogram": np.histogram(confidence, CONFIDENCE_BINS, (0, 1))[0].tolist(),
        "classes_answered": int((counts > 0).sum()),
        "effective_classes": float(np.exp(-(share * np.log(share)).sum())),
        "often": [[int(label), int(counts[label])] for label in often if counts[label]],
    }


# ---- what to label next ----


def _label_next(answers: Answers) -> dict:
    """Return the photographs to label next, among those without a label; among all if every label is known."""
    unlabelled = np.flatnonzero(answers.test.labels < 0)
    pool = unlabelled if len(unlabelled) else np.arange(len(answers.test.labels))
    probabilities = softmax(answers.logits[pool])
    chosen = label_next.suggest(probabilities, answers.test.features[pool], label_next.SUGGESTED)
    suggested = []
    for i, best in zip(chosen, metrics.top_classes(probabilities[chosen], 2)):
        top = [[int(label), float(f"{probabilities[i, label]:.4g}")] for label in best]
        row = int(pool[i])
        suggested.append({"row": row, "name": str(answers.test.names[row]), "top": top})
    return {"all_labelled": not len(unlabelled), "pool": len(pool), "photographs": suggested}
