"""Published methods for comparison, with the constants of the papers and the authors' code.

Each method takes (text, support, val or None, settings) and returns an Outcome. Settings that the papers do not fix are
chosen on folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import numpy as np

from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.errors import TaskError
from fewshot.rows import all_views, one_hot, shot_rows, softmax, subset, unit_rows
from fewshot.training import cosine_lr, descend
from jclip.progress import track

from .folds import Fold, make_folds
from .gaussian import class_means
from .linear import Linear, linear_adapter, zero_shot_classifier
from .outcome import Outcome, Settings

# The defaults are used where there are no folds to choose on. They are of this project, as is the grid of ProKeR, for
# whose authors each data set has a grid of its own.
GDA_ALPHAS, GDA_DEFAULT_ALPHA = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0), 1.0
PROKER_BETAS, PROKER_DEFAULT_BETA = np.linspace(0.5, 20, 14), 5.0
PROKER_LAMBDAS, PROKER_DEFAULT_LAMBDA = np.geomspace(1e-3, 10, 13), 0.1
TASKRES_ALPHA = 0.5
# The authors' train_regular.sh has 100 epochs for up to 4 shots and 200 for 8 and 16.
TASKRES_FEW_SHOTS, TASKRES_FEW_EPOCHS, TASKRES_EPOCHS = 4, 100, 200
CLAP_EPOCHS = 300
# TaskRes and CLAP start from texts that are not normalised; this is roughly their norm for ViT-B/32.
TEXT_NORM = 10.0
WEIGHT_DECAY = 5e-4  # the default of Dassl, the library of TaskRes and CLAP
WARM_UP_LR = 1e-5  # learning rate of the first epoch
NO_CHOICE = "nothing to choose: the authors' settings"


# ---- GDA ----


def gda(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Learn GDA: zero-shot logits plus alpha times the logits of a Gaussian discriminant.

    Wang et al., ICLR 2024, arXiv:2402.04087; github.com/mrflogs/ICLR24.
    """
    folds, how = make_folds(support, val)
    correct = np.zeros(len(GDA_ALPHAS), int)
    for fold in track(folds, "gda", " fold", leave=False):
        correct += _gda_correct(text, fold, _gda_discriminant(text, subset(support, fold.shots)))
    alpha = GDA_ALPHAS[correct.argmax()] if folds else GDA_DEFAULT_ALPHA
    start, (weight, bias) = zero_shot_classifier(text), _gda_discriminant(text, support)
    classifier = Linear(start.weight + np.float32(alpha) * weight, np.float32(alpha) * bias)
    return Outcome(linear_adapter("gda", text, classifier), how, {"alpha": alpha})


def _gda_correct(text: Text, fold: Fold, discriminant: Linear) -> np.ndarray:
    """Return the number of validation rows that each alpha classifies correctly, int (alphas,)."""
    zero_shot, gaussian = zero_shot_classifier(text).logits(fold.features), discriminant.logits(fold.features)
    return np.array(
        [np.count_nonzero((zero_shot + alpha * gaussian).argmax(axis=1) == fold.labels) for alpha in GDA_ALPHAS]
    )


def _gda_discriminant(text: Text, support: Support) -> Linear:
    """Return the classifier f·Σ⁻¹μ − ½μᵀΣ⁻¹μ − log C, with Σ⁻¹ = D·((N − 1)·S + tr(S)·I)⁻¹.

    S is the covariance of the N shots around their class means, and the estimate of Σ⁻¹ that of Kubokawa & Srivastava
    (2008). −log C is the log-probability of a class before its row is seen; it is the same for all classes.
    """
    features, labels = shot_rows(support.features), support.labels
    means, _ = class_means(features, labels, len(text.names))
    width = features.shape[1]
    covariance = np.zeros((width, width))
    if len(labels) > 1:
        covariance = np.cov((features - means[labels]).T.astype(np.float64))
    shrunk = (len(labels) - 1) * covariance + np.trace(covariance) * np.eye(width)
    weight = means @ (width * np.linalg.pinv(shrunk))  # 0 for one shot per class: the result is zero-shot
    bias = -0.5 * (weight * means).sum(axis=1) - np.log(len(means))
    return Linear(weight.astype(np.float32), bias.astype(np.float32))


# ---- ProKeR ----


def proker(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Learn ProKeR: kernel ridge regression of the one-hot labels minus the zero-shot similarities.

    The result is a cache with the solution as its values.

    Bendou et al., CVPR 2025, arXiv:2501.11175.
    """
    folds, how = make_folds(support, val)
    beta, strength = PROKER_DEFAULT_BETA, PROKER_DEFAULT_LAMBDA
    if folds:
        correct = sum(_proker_correct(text, support, fold) for fold in folds)
        best = np.unravel_index(correct.argmax(), correct.shape)
        beta, strength = float(PROKER_BETAS[best[0]]), float(PROKER_LAMBDAS[best[1]])
    keys = shot_rows(support.features)
    values = _proker_values(text, keys, support.labels, beta, [strength])[0]
    # The values are on the scale of similarities, so alpha, the weight of the cache, is the logit scale.
    adapter = Adapter("proker", text.names, text.features, text.scale, keys, values, text.scale, beta)
    return Outcome(adapter, how, {"beta": beta, "lambda": strength})


def _proker_values(text: Text, keys, labels, beta: float, strengths: Sequence[float]) -> list[np.ndarray]:
    """Return the cache values (K/λ + I)⁻¹(Y − Z), float32 (N, C), for each λ of `strengths`.

    K is the kernel matrix exp(−β(1 − k·k')) of the keys (N, D), Y the one-hot labels, and Z the cosine similarities of
    the keys with the texts. As in the authors' code, this is λ times the solution (K + λI)⁻¹(Y − Z) of kernel ridge
    regression, so the values shrink with λ.
    """
    eigenvalues, eigenvectors = np.linalg.eigh(np.exp(-beta * (1 - keys @ keys.T)).astype(np.float64))
    residual = eigenvectors.T @ (one_hot(labels, len(text.names)) - keys @ text.features.T)
    return [
        (eigenvectors @ (residual / (eigenvalues / strength + 1)[:, None])).astype(np.float32) for strength in strengths
    ]


def _proker_correct(text: Text, support: Support, fold: Fold) -> np.ndarray:
    """Return the number of validation rows that each beta and lambda classify correctly, int (betas, lambdas)."""
    keys, labels = shot_rows(support.features)[fold.shots], support.labels[fold.shots]
    cosines, distance = fold.features @ text.features.T, 1 - fold.features @ keys.T
    correct = np.zeros((len(PROKER_BETAS), len(PROKER_LAMBDAS)), int)
    for i, beta in enumerate(track(PROKER_BETAS, "proker", " beta", leave=False)):
        affinity = np.exp(-beta * distance).astype(np.float32)
        for j, values in enumerate(_proker_values(text, keys, labels, beta, PROKER_LAMBDAS)):
            correct[i, j] = np.count_nonzero((cosines + affinity @ values).argmax(axis=1) == fold.labels)
    return correct


# ---- TaskRes and CLAP: one learned vector per class, with cosine similarity as logits ----


def taskres(text: Text, support: Support, val: Split | None, settings: Settings) -> Outcome:
    """Learn TaskRes: a residual that is added to the texts, trained by Adam.

    Yu et al., CVPR 2023, arXiv:2211.10277; github.com/geekyutao/TaskRes.
    """
    few = np.bincount(support.labels).max() <= TASKRES_FEW_SHOTS
    epochs = TASKRES_FEW_EPOCHS if few else TASKRES_EPOCHS
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
    """Learn CLAP: class prototypes that start at the texts, with a penalty on the squared distance to the text.

    The penalty of a class is weighted by the mean zero-shot probability of the class on its own shots.
    Silva-Rodríguez et al., CVPR 2024, arXiv:2312.12730; github.com/jusiro/CLAP.
    """
    rows, labels = all_views(support)
    probabilities = softmax(text.scale * rows @ text.features.T)
    penalty_weight, _ = class_means(probabilities[np.arange(len(labels)), labels][:, None], labels, len(text.names))
    start = TEXT_NORM * text.features

    def sgd(jt, prototypes):
        return jt.optim.SGD([prototypes], 0.1, momentum=0.9, weight_decay=WEIGHT_DECAY)

    def loss(jt, prototypes, features, labels):
        squared_distance = (prototypes - jt.array(start).stop_grad()).sqr().sum(1)
        cross_entropy = jt.nn.cross_entropy_loss(_cosine_logits(jt, text, features, prototypes), labels)
        return cross_entropy + (jt.array(penalty_weight[:, 0]).stop_grad() * squared_distance).mean()

    prototypes = _learn(support, start, sgd, loss, settings, "clap", CLAP_EPOCHS)
    classifier = _cosine_classifier(text, prototypes)
    return Outcome(linear_adapter("clap", text, classifier), NO_CHOICE, {"epochs": CLAP_EPOCHS})


def _cosine_logits(jt, text: Text, features, prototypes):
    """Return the cosine logits (B, C) of features (B, D) with prototypes (C, D) of any norm; all are Vars."""
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
    """Train one parameter on all views of the shots and return its final value, float32 of the shape of `start`.

    start is the initial value. make_optimizer(jt, parameter) returns an optimizer whose lr is the highest learning
    rate; the schedule is a cosine over epochs, except for the first epoch at WARM_UP_LR. loss(jt, parameter, features,
    labels) takes Vars (B, D) and (B,) and returns a Var of one element. Raises TaskError if the parameter becomes NaN
    or infinite.
    """
    from jclip import runtime

    runtime.use(settings.device)
    jt = runtime.jittor()
    features, labels = all_views(support)
    features, labels = jt.array(features).stop_grad(), jt.array(labels.astype(np.int32))
    parameter = jt.array(start.copy())
    optimizer = make_optimizer(jt, parameter)
    max_lr = optimizer.lr

    def batch_loss(batch):
        return loss(jt, parameter, features[batch], labels[batch])

    def learning_rate(epoch, step):
        return cosine_lr(max_lr, epoch, epochs) if epoch else WARM_UP_LR

    run = descend(optimizer, batch_loss, len(features), epochs, learning_rate, settings.seed)
    for _ in track(run, method, " epoch", epochs, leave=False):
        pass
    learned = parameter.numpy()
    if not np.isfinite(learned).all():
        raise TaskError(f"{method} diverged on these features; choose another --method")
    return learned
