"""Scores of a method on the validation rows, compared with baselines, and over several draws of the shots."""

from __future__ import annotations

from dataclasses import replace

from fewshot.artifacts import Adapter, Split
from fewshot.prompts import class_groups
from fewshot.support import redraw
from fewshot.task_features import TaskFeatures
from jclip.progress import track
from methods import METHODS, Settings, train
from tip_adapter_utils import predict_logits

from . import metrics

BASELINES = ("zero-shot", "tip", "gda")  # fast methods to compare with


def score(adapter: Adapter, task: TaskFeatures, split: Split) -> dict:
    """Return the scores of an adapter on the labelled rows of a split, as `metrics.score` does."""
    logits = predict_logits(adapter, split.features)
    return metrics.score(logits, split.labels, adapter.names, class_groups(task.text))


def score_beside_baselines(adapter: Adapter, task: TaskFeatures, settings: Settings) -> dict:
    """Return the scores of an adapter on the labelled validation rows, with scores of the baselines under "beside"."""
    has_shots = len(task.support.labels) > 0
    beside = {}
    for name in BASELINES:
        if name != adapter.method and (has_shots or not METHODS[name].needs_shots):
            scores = score(train(name, *task, settings).adapter, task, task.val)
            beside[name] = {key: scores[key] for key in ("n", "top1", "top5", "calibration_error")}
    return {**score(adapter, task, task.val), "beside": beside}


def score_draws(method: str, task: TaskFeatures, settings: Settings, draws: int) -> list[dict]:
    """Train a method on several draws of the shots and return the scores of each draw.

    Parameters
    ----------
    method : str
        A key of METHODS.
    task : TaskFeatures
        Must have labelled validation rows, since shots are drawn from shots and validation rows.
    settings : Settings
        The seeds of the draws are settings.seed, settings.seed + 1, …
    draws : int
        The number of draws.

    Returns
    -------
    list of dict
        "seed", "n", "top1" and "top5" of each draw, on the rows that are left for validation.
    """
    draw_scores = []
    for seed in track(range(settings.seed, settings.seed + draws), "draws of the shots", " draw", leave=False):
        drawn = TaskFeatures(task.text, *redraw(task.support, task.val, seed))
        scores = score(train(method, *drawn, replace(settings, seed=seed)).adapter, drawn, drawn.val)
        draw_scores.append({"seed": seed, "n": scores["n"], "top1": scores["top1"], "top5": scores["top5"]})
    return draw_scores
