"""Published methods, to compare with: constants are those of the papers and the authors' code, choices made on folds.

Each takes (text, support, val or None, settings) and returns an Outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np
from tqdm import tqdm

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.errors import TaskError
from fewshot.rows import all_views, one_hot, shot_rows, softmax, subset, unit_rows
from fewshot.training import cosine, descend

from .folds import Fold, make_folds
from .gaussian import class_means
from .linear import Linear, linear_adapter, zero_shot_classifier
from .outcome import Outcome, Settings

GDA_ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
PROKER_BETAS = np.linspace(0.5, 20, 14)
PROKER_LAMBDAS = np.geomspace(1e-3, 10, 13)
TASKRES_ALPHA = 0.5
CLAP_EPOCHS = 300
# About that of ViT-B/32's text features: TaskRes and CLAP learn from texts as they come, not normalised.
TEXT_NORM = 10.0
WEIGHT_DECAY = 5e-4  # the default of Dassl, the library that both are written in
WARM_UP = 1e-5  # learning rate of the first epoch
NO_CHOICE = "nothing to choose: the authors' settings"


# ---- GDA ----


def gda(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Zero-shot logits plus alpha times those of a Gaussian discriminant.

    Wang et al., ICLR 2024, arXiv:2402.04087; github.com/mrflogs/ICLR24.
    """
    folds, how = make_folds(support, val)
    right = np.zeros(len(GDA_ALPHAS), int)
    for fold in folds:
        right += _gda_right(text, fold, _gda_discriminant(text, subset(support, fold.shots)))
    alpha = GDA_ALPHAS[right.argmax()] if folds else 1.0
    start, (weight, bias) = zero_shot_classifier(text), _gda_discriminant(text, support)
    classifier = Linear(start.weight + np.float32(alpha) * weight, np.float32(alpha) * bias)
    return Outcome(linear_adapter("gda", text, classifier), how, {"alpha": alpha})


def _gda_right(text: Text, fold: Fold, discriminant: Linear) -> np.ndarray:
    """How many validation rows each alpha classifies rightly, int (alphas,)."""
    zero_shot, gaussian = zero_shot_classifier(text).logits(fold.features), discriminant.logits(fold.features)
    return np.array(
        [np.count_nonzero((zero_shot + alpha * gaussian).argmax(axis=1) == fold.labels) for alpha in GDA_ALPHAS]
    )


def _gda_discriminant(text: Text, support: Support) -> Linear:
    """f·Σ⁻¹μ − ½μᵀΣ⁻¹μ, the precision Σ⁻¹ shrunk as by Kubokawa & Srivastava 2008: D·((N − 1)·S + tr(S)·I)⁻¹."""
    features, labels = shot_rows(support.features), support.labels
    means, _ = class_means(features, labels, len(text.names))
    width = features.shape[1]
    scatter = np.zeros((width, width))
    if len(labels) > 1:
        scatter = np.cov((features - means[labels]).T.astype(np.float64))
    shrunk = (len(labels) - 1) * scatter + np.trace(scatter) * np.eye(width)
    weight = means @ (width * np.linalg.pinv(shrunk))  # 0 for one shot a class: zero-shot remains
    bias = -0.5 * (weight * means).sum(axis=1) - np.log(len(means))
    return Linear(weight.astype(np.float32), bias.astype(np.float32))


# ---- ProKeR ----


def proker(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Kernel ridge regression of what zero-shot leaves: a cache whose values are solved for.

    Bendou et al., CVPR 2025, arXiv:2501.11175.
    """
    folds, how = make_folds(support, val)
    beta, strength = 5.0, 0.1
    if folds:
        right = sum(_proker_right(text, support, fold) for fold in folds)
        best = np.unravel_index(right.argmax(), right.shape)
        beta, strength = float(PROKER_BETAS[best[0]]), float(PROKER_LAMBDAS[best[1]])
    keys = shot_rows(support.features)
    values = _proker_values(text, keys, support.labels, beta, [strength])[0]
    adapter = Adapter("proker", text.names, text.features, text.scale, keys, values, text.scale, beta)
    return Outcome(adapter, how, {"beta": beta, "lambda": strength})


def _proker_values(text: Text, keys, labels, beta: float, strengths: Sequence[float]) -> list[np.ndarray]:
    """(K/λ + I)⁻¹(Y − Z), float32 (N, C), for each λ of `strengths`.

    K is the kernel exp(−β(1 − k·k')) of all pairs of keys (N, D), Y the one-hot labels, Z the keys' cosines with the
    texts.
    """
    size, axes = np.linalg.eigh(np.exp(-beta * (1 - keys @ keys.T)).astype(np.float64))
    rest = axes.T @ (one_hot(labels, len(text.names)) - keys @ text.features.T)
    return [(axes @ (rest / (size / strength + 1)[:, None])).astype(np.float32) for strength in strengths]


def _proker_right(text: Text, support: Support, fold: Fold) -> np.ndarray:
    """How many validation rows each beta and lambda classify rightly, int (betas, lambdas)."""
    keys, labels = shot_rows(support.features)[fold.shots], support.labels[fold.shots]
    cosines, distance = fold.features @ text.features.T, 1 - fold.features @ keys.T
    right = np.zeros((len(PROKER_BETAS), len(PROKER_LAMBDAS)), int)
    for i, beta in enumerate(tqdm(PROKER_BETAS, desc="proker", unit=" beta", disable=None, leave=False)):
        affinity = np.exp(-beta * distance).astype(np.float32)
        for j, values in enumerate(_proker_values(text, keys, labels, beta, PROKER_LAMBDAS)):
            right[i, j] = np.count_nonzero((cosines + affinity @ values).argmax(axis=1) == fold.labels)
    return right


# ---- TaskRes and CLAP: one vector a class, learned as a classifier by cosine ----


def taskres(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """A residual, learned by Adam, on the texts.

    Yu et al., CVPR 2023, arXiv:2211.10277; github.com/geekyutao/TaskRes.
    """
    epochs = 100 if np.bincount(support.labels).max() <= 4 else 200
    start = TEXT_NORM * text.features

    def adam(jt, residual):
        return jt.optim.Adam([residual], 2e-3, weight_decay=WEIGHT_DECAY)

    def loss(jt, residual, features, labels):
        prototypes = jt.array(start).stop_grad() + TASKRES_ALPHA * residual
        return jt.nn.cross_entropy_loss(_cosine_logits(jt, text, features, prototypes), labels)

    residual = _learn(support, np.zeros_like(start), adam, loss, settings, "taskres", epochs)
    classifier = _cosine_classifier(text, start + TASKRES_ALPHA * residual)
    return Outcome(linear_adapter("taskres", text, classifier), NO_CHOICE, {"epochs": epochs})


def clap(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Class prototypes that start at the texts, with a penalty on the squared distance of each from its text.

    The weight of a class's penalty is its mean zero-shot probability on its own shots.
    Silva-Rodríguez et al., CVPR 2024, arXiv:2312.12730; github.com/jusiro/CLAP.
    """
    rows, labels = all_views(support)
    probabilities = softmax(text.scale * rows @ text.features.T)
    penalty, _ = class_means(probabilities[np.arange(len(labels)), labels][:, None], labels, len(text.names))
    start = TEXT_NORM * text.features

    def sgd(jt, prototypes):
        return jt.optim.SGD([prototypes], 0.1, momentum=0.9, weight_decay=WEIGHT_DECAY)

    def loss(jt, prototypes, features, labels):
        moved = (prototypes - jt.array(start).stop_grad()).sqr().sum(1)
        cross_entropy = jt.nn.cross_entropy_loss(_cosine_logits(jt, text, features, prototypes), labels)
        return cross_entropy + (jt.array(penalty[:, 0]).stop_grad() * moved).mean()

    prototypes = _learn(support, start, sgd, loss, settings, "clap", CLAP_EPOCHS)
    classifier = _cosine_classifier(text, prototypes)
    return Outcome(linear_adapter("clap", text, classifier), NO_CHOICE, {"epochs": CLAP_EPOCHS})


def _cosine_logits(jt, text: Text, features, prototypes):
    """Vars: features (B, D), prototypes (C, D) of any norm -> (B, C)."""
    unit = prototypes / prototypes.sqr().sum(1, keepdims=True).sqrt()
    return text.scale * jt.nn.matmul_transpose(features, unit)


def _cosine_classifier(text: Text, prototypes: np.ndarray) -> Linear:
    return Linear(unit_rows(prototypes, text.scale), np.zeros(len(prototypes), np.float32))


def _learn(
    support: Support,
    start: np.ndarray,
    make_optimizer: Callable,
    loss: Callable,
    settings: Settings,
    method: str,
    epochs: int,
) -> np.ndarray:
    """Learn a parameter from all views of the shots, with a cosine schedule over epochs, the first at WARM_UP.

    start is its first value and has its shape, float32. make_optimizer(jt, parameter) returns an optimizer that has the
    highest learning rate. loss(jt, parameter, features, labels) takes Vars (B, D) and (B,) and returns a Var of one
    element. Raises TaskError where the parameter becomes NaN or infinite.
    """
    from jclip import runtime

    runtime.use(settings.device)
    jt = runtime.jittor()
    features, labels = all_views(support)
    features, labels = jt.array(features).stop_grad(), jt.array(labels.astype(np.int32))
    parameter = jt.array(start.copy())
    optimizer = make_optimizer(jt, parameter)
    highest = optimizer.lr

    def batch_loss(batch):
        return loss(jt, parameter, features[batch], labels[batch])

    def rate(epoch, step):
        return cosine(highest, epoch, epochs) if epoch else WARM_UP

    run = descend(optimizer, batch_loss, len(features), epochs, rate, settings.seed)
    for _ in tqdm(run, desc=method, total=epochs, unit=" epoch", disable=None, leave=False):
        pass
    learned = parameter.numpy()
    if not np.isfinite(learned).all():
        raise TaskError(f"{method} diverged on these features; choose another --method")
    return learned
