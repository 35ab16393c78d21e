"""How good a method is on a task: on its validation rows beside others, and over other draws of its shots."""

from __future__ import annotations

from dataclasses import replace

from fewshot.artifacts import Adapter, Split
from fewshot.prompts import groups_of
from fewshot.support import redraw
from fewshot.task_features import TaskFeatures
from methods import METHODS, Settings, train
from tip_adapter_utils import predict_logits

from . import metrics

BASELINES = ("zero-shot", "tip", "gda")  # methods that take seconds, to compare another with


def score(adapter: Adapter, task: TaskFeatures, split: Split) -> dict:
    """Figures of an adapter on the labelled rows of a split, as `metrics.score` returns them."""
    logits = predict_logits(adapter, split.features)
    return metrics.score(logits, split.labels, adapter.names, groups_of(task.text))


def score_beside_baselines(adapter: Adapter, task: TaskFeatures, settings: Settings) -> dict:
    """Figures of an adapter on the labelled validation rows; under "beside" some of those of each other baseline."""
    has_shots = len(task.support.labels) > 0
    beside = {}
    for name in BASELINES:
        if name != adapter.method and (has_shots or not METHODS[name].needs_shots):
            figures = score(train(name, *task, settings).adapter, task, task.val)
            beside[name] = {key: figures[key] for key in ("n", "top1", "top5", "calibration_error")}
    return {**score(adapter, task, task.val), "beside": beside}


def score_draws(method: str, task: TaskFeatures, settings: Settings, draws: int) -> list[dict]:
    """Figures of a method on other draws of the shots, each with a seed of its own.

    Parameters
    ----------
    method : str
        A key of METHODS.
    task : TaskFeatures
        With labelled validation rows, from which other shots are drawn.
    settings : Settings
        Whose seed is that of the first draw; each further draw has the next.
    draws : int

    Returns
    -------
    list of dict
        "seed", "n", "top1" and "top5" of each draw, on the rows that it left for validation.
    """
    scores = []
    for seed in range(settings.seed, settings.seed + draws):
        drawn = TaskFeatures(task.text, *redraw(task.support, task.val, seed))
        figures = score(train(method, *drawn, replace(settings, seed=seed)).adapter, drawn, drawn.val)
        scores.append({"seed": seed, "n": figures["n"], "top1": figures["top1"], "top5": figures["top5"]})
    return scores
