"""Tip-Adapter: CLIP's zero-shot logits plus a cache of a few labelled photographs, whose keys can be fine-tuned.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2207.09519;
constants are those of the authors' code, github.com/gaopengcuhk/Tip-Adapter (main_imagenet.py, utils.py, configs/).
How alpha, beta and the epoch are chosen stands in methods/grid.py and methods/tip_adapter.py.

Letters: C classes, N shots, V views of each, D feature width, M rows. Features are float32 rows of unit L2 norm. All is
numpy but the fine-tuning, which imports Jittor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Text
from fewshot.errors import TaskError
from fewshot.rows import chunks, one_hot, shot_rows

# Where nothing can be chosen: the authors' settings for ImageNet.
DEFAULT_ALPHA, DEFAULT_BETA = 1.17, 1.0
# At which keys are fine-tuned. The authors take beta 1, and set an alpha from 1.17 to 5 by hand for each data set. This
# pair was best, but for a few validation rows, on cars and scenes at 1 to 16 shots; the pair that suits untrained keys
# is worse.
TRAIN_ALPHA, TRAIN_BETA = 4.0, 1.0
DEVICE_CHUNK = 2**25  # numbers at a time where Jittor computes: enough for a GPU, and memory stays flat


def tip_logits(zero_shot, affinity, values, alpha: float, beta: float):
    """Zero-shot logits plus what the cache says: f·Wᵀ·scale + alpha·exp(−beta·(1 − f·Kᵀ))·V.

    Parameters
    ----------
    zero_shot : array or Var of shape (M, C)
        Cosine similarities f·Wᵀ with the classes' texts, times the logit scale.
    affinity : array or Var of shape (M, N)
        Similarities f·Kᵀ with the cache's keys.
    values : array or Var of shape (N, C)
        One-hot labels of the keys, V.
    alpha : float
        Weight of the cache.
    beta : float
        Sharpness of its affinities.

    Returns
    -------
    array or Var of shape (M, C)
        Of the kind that the arguments are.
    """
    exp = np.exp if isinstance(affinity, np.ndarray) else type(affinity).exp
    return zero_shot + alpha * (exp(-beta * (1 - affinity)) @ values)


def predict_logits(adapter: Adapter, features: np.ndarray) -> np.ndarray:
    """Logits of any rows by any adapter.

    Parameters
    ----------
    adapter : Adapter
    features : float32 array of shape (M, D)

    Returns
    -------
    float32 array of shape (M, C)
    """
    logits = np.empty((len(features), len(adapter.names)), np.float32)
    for rows in chunks(len(features), len(adapter.keys) + len(adapter.names)):
        f = features[rows]
        logits[rows] = tip_logits(
            f @ adapter.weight.T + adapter.bias, f @ adapter.keys.T, adapter.values, adapter.alpha, adapter.beta
        )
    return logits


class Cache(NamedTuple):
    """The shots as keys and values."""

    keys: np.ndarray  # float32 (N, D)
    values: np.ndarray  # float32 (N, C), one-hot


def cache(features: np.ndarray, labels: np.ndarray, classes: int) -> Cache:
    """The cache of shots: a key is the renormalised mean of a shot's views.

    Parameters
    ----------
    features : float32 array of shape (N, V, D)
    labels : int array of shape (N,)
    classes : int
        C, how many there are.
    """
    return Cache(shot_rows(features), one_hot(labels, classes))


# ---- fine-tuning ----


class Epoch(NamedTuple):
    """The state after an epoch of fine-tuning."""

    keys: object  # Var float32 (N, D), on the device; .numpy() fetches them
    right: int  # validation rows that are classified rightly; 0 without any


def fine_tune(
    rows: tuple[np.ndarray, np.ndarray],
    text: Text,
    cached: Cache,
    alpha: float = TRAIN_ALPHA,
    beta: float = TRAIN_BETA,
    *,
    epochs: int,
    lr: float,
    seed: int,
    device: str,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> Iterator[Epoch]:
    """Fine-tune the keys of a cache by cross-entropy over `tip_logits`, and yield an Epoch after each epoch.

    The keys are a linear layer's weight: they are not renormalised. All arrays stay on the device.

    Parameters
    ----------
    rows : (float32 array of shape (R, D), int array of shape (R,))
        Features and labels to learn from: all views of the shots.
    text : Text
    cached : Cache
        Of the shots; its keys are the first ones.
    alpha, beta : float
        As for `tip_logits`.
    epochs, lr, seed : int, float, int
        AdamW with a cosine schedule over all steps from `lr` to 0; `seed` is of the order of the rows.
    device : str
        As for `jclip.runtime.use`.
    validation : (float32 array of shape (M, D), int array of shape (M,)) or None
        Features and labels that are classified after each epoch.

    Raises
    ------
    ClipError
        Where the device cannot be used.
    TaskError
        Where the keys become NaN or infinite.
    """
    from jclip import runtime

    runtime.use(device)
    jt = runtime.jittor()
    from fewshot.cache_logits import CacheLogits, cross_entropy
    from fewshot.training import batches, cosine, descend

    train = _on_device(jt, text, *rows)
    val = _on_device(jt, text, *validation) if validation else None
    logits = CacheLogits(cached.values.argmax(axis=1), len(text.names), float(alpha), float(beta))
    keys = jt.array(cached.keys)
    optimizer = jt.optim.AdamW([keys], lr, eps=1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    n, steps = len(rows[0]), epochs * batches(len(rows[0]))

    def loss(batch):
        affinity = jt.nn.matmul_transpose(train.features[batch], keys)
        return cross_entropy(logits(affinity, train.zero_shot[batch]), train.labels[batch])

    for epoch in descend(optimizer, loss, n, epochs, lambda _, step: cosine(lr, step, steps), seed):
        if not np.isfinite(keys.sqr().sum().item()):
            raise TaskError(f"fine-tuning diverged in epoch {epoch + 1}; choose an --lr below {lr:g}")
        yield Epoch(keys.clone().stop_grad(), _count_right(jt, logits, keys, val) if val else 0)


class _DeviceRows(NamedTuple):
    """Rows on the device, as Vars."""

    features: object  # float32 (R, D)
    zero_shot: object  # float32 (R, C), their zero-shot logits
    labels: object  # int32 (R,)


def _on_device(jt, text: Text, features: np.ndarray, labels: np.ndarray) -> _DeviceRows:
    arrays = features, text.scale * (features @ text.features.T), labels.astype(np.int32)
    return _DeviceRows(*(jt.array(x).stop_grad() for x in arrays))


def _count_right(jt, logits, keys, rows: _DeviceRows) -> int:
    """How many rows have their highest logit at their label; of equal logits the lowest label's counts as highest."""
    right = 0
    with jt.no_grad():
        for some in chunks(len(rows.features), len(keys) + rows.zero_shot.shape[1], DEVICE_CHUNK):
            computed = logits(jt.nn.matmul_transpose(rows.features[some], keys), rows.zero_shot[some])
            labels, shape = rows.labels[some], computed.shape
            of_label = computed.reindex(labels.shape, ["i0", "@e0(i0)"], extras=[labels]).broadcast(shape, [1])
            is_lower = jt.index(shape, 1) < labels.broadcast(shape, [1])
            ahead = (computed > of_label) | ((computed == of_label) & is_lower)
            right += int((ahead.float32().sum(1) == 0).float32().sum().item())
    return right
