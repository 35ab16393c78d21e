"""Methods as their papers and their authors' code have them, to compare with: constants are theirs, choices are made on
the trials.

Each takes (text, support, val or None, settings) and returns the adapter and what was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.errors import TaskError
from report.metrics import softmax

from .gaussian import class_means
from .task import (
    Linear,
    Settings,
    Trial,
    all_views,
    linear_adapter,
    one_hot,
    shot_rows,
    some_of,
    trials,
    zero_shot_classifier,
)

GDA_ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
PROKER_BETAS = np.linspace(0.5, 20, 14)
PROKER_LAMBDAS = np.geomspace(1e-3, 10, 13)
TASKRES_ALPHA = 0.5
TEXT_NORM = (
    10.0  # about that of ViT-B/32's text features: TaskRes and CLAP learn from texts as they come, not normalised
)
BATCH_SIZE = 256
WEIGHT_DECAY = 5e-4  # the default of Dassl, the library that both are written in
WARM_UP = 1e-5  # learning rate of the first epoch


def gda(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """Zero-shot logits plus alpha times a Gaussian discriminant. Wang et al., ICLR 2024, arXiv:2402.04087;
    github.com/mrflogs/ICLR24."""
    judged, how = trials(support, val)
    right = sum(
        (_gda_right(text, trial, _discriminant(text, some_of(support, trial.shots))) for trial in judged),
        np.zeros(len(GDA_ALPHAS), int),
    )
    alpha = GDA_ALPHAS[right.argmax()] if judged else 1.0
    start, (weight, bias) = zero_shot_classifier(text), _discriminant(text, support)
    return linear_adapter("gda", text, Linear(start.weight + np.float32(alpha) * weight, np.float32(alpha) * bias)), {
        "how": how,
        "alpha": alpha,
    }


def _gda_right(text: Text, trial: Trial, discriminant: Linear) -> np.ndarray:
    """Rows classified rightly for each alpha, int (alphas,)."""
    zero_shot, gaussian = (
        trial.features @ zero_shot_classifier(text).weight.T,
        trial.features @ discriminant.weight.T + discriminant.bias,
    )
    return np.array(
        [np.count_nonzero((zero_shot + alpha * gaussian).argmax(axis=1) == trial.labels) for alpha in GDA_ALPHAS]
    )


def _discriminant(text: Text, support: Support) -> Linear:
    """f·Σ⁻¹μ − ½μᵀΣ⁻¹μ, the precision Σ⁻¹ shrunk as by Kubokawa & Srivastava 2008: D·((N − 1)·S + tr(S)·I)⁻¹."""
    features, labels = shot_rows(support.features), support.labels
    means, _ = class_means(features, labels, len(text.names))
    scatter = (
        np.cov((features - means[labels]).T.astype(np.float64))
        if len(labels) > 1
        else np.zeros((features.shape[1],) * 2)
    )
    width = len(scatter)
    shrunk = (len(labels) - 1) * scatter + np.trace(scatter) * np.eye(width)
    weight = means @ (
        width * np.linalg.pinv(shrunk)
    )  # of one shot a class nothing is left over: 0, and zero-shot remains
    return Linear(
        weight.astype(np.float32), (-0.5 * (weight * means).sum(axis=1) - np.log(len(means))).astype(np.float32)
    )


def proker(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """Kernel ridge regression of what zero-shot leaves: a cache whose values are solved for. Bendou et al., CVPR 2025,
    arXiv:2501.11175."""
    judged, how = trials(support, val)
    chosen = {"how": how, "beta": 5.0, "lambda": 0.1}
    if judged:
        right = sum(_proker_right(text, support, trial) for trial in judged)
        beta, strength = np.unravel_index(right.argmax(), right.shape)
        chosen.update(beta=float(PROKER_BETAS[beta]), **{"lambda": float(PROKER_LAMBDAS[strength])})
    keys = shot_rows(support.features)
    values = _proker_values(text, keys, support.labels, chosen["beta"], [chosen["lambda"]])[0]
    return Adapter("proker", text.names, text.features, text.scale, keys, values, text.scale, chosen["beta"]), chosen


def _proker_values(text: Text, keys, labels, beta: float, strengths: Sequence[float]) -> list[np.ndarray]:
    """(K/λ + I)⁻¹ of one-hot labels less zero-shot cosines, float32 (N, C), for each λ; K the kernel exp(−β(1 −
    k·k'))."""
    size, axes = np.linalg.eigh(np.exp(-beta * (1 - keys @ keys.T)).astype(np.float64))
    rest = axes.T @ (one_hot(labels, len(text.names)) - keys @ text.features.T)
    return [(axes @ (rest / (size / strength + 1)[:, None])).astype(np.float32) for strength in strengths]


def _proker_right(text: Text, support: Support, trial: Trial) -> np.ndarray:
    """Rows classified rightly for each beta and lambda, int (betas, lambdas)."""
    keys, labels = shot_rows(support.features)[trial.shots], support.labels[trial.shots]
    cosines, distance = trial.features @ text.features.T, 1 - trial.features @ keys.T
    right = np.zeros((len(PROKER_BETAS), len(PROKER_LAMBDAS)), int)
    for i, beta in enumerate(tqdm(PROKER_BETAS, desc="proker", unit=" beta", disable=None, leave=False)):
        affinity = np.exp(-beta * distance).astype(np.float32)
        for j, values in enumerate(_proker_values(text, keys, labels, beta, PROKER_LAMBDAS)):
            right[i, j] = np.count_nonzero((cosines + affinity @ values).argmax(axis=1) == trial.labels)
    return right


def taskres(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """A residual, learned by Adam, on the texts. Yu et al., CVPR 2023, arXiv:2211.10277;
    github.com/geekyutao/TaskRes."""
    rows, labels = all_views(support)
    epochs = 100 if np.bincount(support.labels).max() <= 4 else 200
    start = TEXT_NORM * text.features

    def objective(jt, residual, features, targets):
        return jt.nn.cross_entropy_loss(
            _cosine_logits(jt, text, features, jt.array(start).stop_grad() + TASKRES_ALPHA * residual), targets
        )

    residual = _trained(
        rows,
        labels,
        np.zeros_like(start),
        objective,
        settings,
        "taskres",
        epochs,
        lambda jt, parameter: jt.optim.Adam([parameter], 2e-3, weight_decay=WEIGHT_DECAY),
    )
    return linear_adapter("taskres", text, _normalised(text, start + TASKRES_ALPHA * residual)), {
        "how": "nothing to choose: the authors' settings",
        "epochs": epochs,
    }


def clap(text: Text, support: Support, val: Split | None, settings: Settings) -> tuple[Adapter, dict]:
    """Class prototypes from the texts on, pulled back by a penalty for each class as large as its zero-shot probability
    on its shots.

    Silva-Rodríguez et al., CVPR 2024, arXiv:2312.12730; github.com/jusiro/CLAP.
    """
    rows, labels = all_views(support)
    chances = softmax(text.scale * rows @ text.features.T)
    trust, _ = class_means(chances[np.arange(len(labels)), labels][:, None], labels, len(text.names))
    start = TEXT_NORM * text.features

    def objective(jt, prototypes, features, targets):
        moved = (prototypes - jt.array(start).stop_grad()).sqr().sum(1)
        return (
            jt.nn.cross_entropy_loss(_cosine_logits(jt, text, features, prototypes), targets)
            + (jt.array(trust[:, 0]).stop_grad() * moved).mean()
        )

    weight = _trained(
        rows,
        labels,
        start,
        objective,
        settings,
        "clap",
        300,
        lambda jt, parameter: jt.optim.SGD([parameter], 0.1, momentum=0.9, weight_decay=WEIGHT_DECAY),
    )
    return linear_adapter("clap", text, _normalised(text, weight)), {
        "how": "nothing to choose: the authors' settings",
        "epochs": 300,
    }


def _cosine_logits(jt, text: Text, features, prototypes):
    unit = prototypes / prototypes.sqr().sum(1, keepdims=True).sqrt()
    return text.scale * jt.nn.matmul_transpose(features, unit)


def _normalised(text: Text, weight: np.ndarray) -> Linear:
    return Linear(
        text.scale * weight / np.linalg.norm(weight, axis=1, keepdims=True), np.zeros(len(weight), np.float32)
    )


def _trained(
    rows, labels, start: np.ndarray, objective, settings: Settings, what: str, epochs: int, optimizer
) -> np.ndarray:
    """A parameter after so many epochs of minimising objective(jt, parameter, features, labels), float32 as `start`.

    Cosine schedule by the epoch, the first epoch at WARM_UP. Raises TaskError where it diverges.
    """
    from jclip import runtime

    runtime.use(settings.device)
    jt = runtime.jittor()
    parameter = jt.array(start.copy())
    steps, rng = optimizer(jt, parameter), np.random.default_rng(settings.seed)
    highest = steps.lr
    for epoch in tqdm(range(epochs), desc=what, unit=" epoch", disable=None, leave=False):
        steps.lr = highest * (1 + np.cos(np.pi * epoch / epochs)) / 2 if epoch else WARM_UP
        for chosen in _batches(len(rows), rng):
            steps.step(
                objective(jt, parameter, jt.array(rows[chosen]).stop_grad(), jt.array(labels[chosen].astype(np.int32)))
            )
    found = parameter.numpy()
    if not np.isfinite(found).all():
        raise TaskError(f"{what} diverged on these features; choose another --method")
    return found


def _batches(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    order = rng.permutation(n)
    return (order[start : start + BATCH_SIZE] for start in range(0, n, BATCH_SIZE))
