"""Tip-Adapter: CLIP's zero-shot logits plus the logits of a cache of labelled photographs with tunable keys.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv:2207.09519;
constants are from the authors' code, github.com/gaopengcuhk/Tip-Adapter (main_imagenet.py, utils.py, configs/).
methods/grid.py chooses alpha and beta, methods/tip_adapter.py chooses the epoch.

Letters: C classes, N shots, V views of each shot, D feature width, M rows. Features are float32 rows of unit L2
norm. Only fine-tuning needs Jittor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Text
from fewshot.errors import TaskError
from fewshot.rows import chunks, one_hot, shot_rows

# Used if they cannot be chosen on folds: the authors' settings for ImageNet.
DEFAULT_ALPHA, DEFAULT_BETA = 1.17, 1.0
# Used while keys are fine-tuned. The authors use beta 1 and set alpha by hand for each data set, from 1.17 to 5. On
# Stanford Cars and SUN397 with 1 to 16 shots, this pair was the best or within a few validation rows of the best. The
# best pair for untrained keys is worse here.
TRAIN_ALPHA, TRAIN_BETA = 4.0, 1.0
DEVICE_CHUNK = 2**25  # elements per chunk with Jittor, enough to use a GPU fully with bounded memory


def tip_logits(zero_shot, affinity, values, alpha: float, beta: float):
    """Return the zero-shot logits plus those of the cache: f·Wᵀ·scale + alpha·exp(−beta·(1 − f·Kᵀ))·V.

    Parameters
    ----------
    zero_shot : float32 array or Jittor Var of shape (M, C)
        Cosine similarities f·Wᵀ with the classes' texts, times the logit scale; or the logits of another linear
        classifier.
    affinity : array or Var of shape (M, N)
        Similarities f·Kᵀ with the cache's keys.
    values : array or Var of shape (N, C)
        One-hot labels of the keys, V.
    alpha : float
        Weight of the cache.
    beta : float
        Sharpness of the affinities.

    Returns
    -------
    array or Var of shape (M, C)
        The same type as the arguments.
    """
    exp = np.exp if isinstance(affinity, np.ndarray) else type(affinity).exp
    return zero_shot + alpha * (exp(-beta * (1 - affinity)) @ values)


def predict_logits(adapter: Adapter, features: np.ndarray) -> np.ndarray:
    """Return the logits of an adapter for features.

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
        chunk = features[rows]
        logits[rows] = tip_logits(
            chunk @ adapter.weight.T + adapter.bias, chunk @ adapter.keys.T, adapter.values, adapter.alpha, adapter.beta
        )
    return logits


class Cache(NamedTuple):
    """The keys and values of the shots."""

    keys: np.ndarray  # float32 (N, D)
    values: np.ndarray  # float32 (N, C), one-hot


def build_cache(features: np.ndarray, labels: np.ndarray, n_classes: int) -> Cache:
    """Return the cache of shots; each key is the normalised mean of the views of a shot.

    Parameters
    ----------
    features : float32 array of shape (N, V, D)
    labels : int array of shape (N,)
    n_classes : int
        C, the number of classes.
    """
    return Cache(shot_rows(features), one_hot(labels, n_classes))


# ---- fine-tuning ----


class Epoch(NamedTuple):
    """The state after an epoch of fine-tuning."""

    keys: object  # Var float32 (N, D), on the device; .numpy() copies them to the host
    correct: int  # number of correctly classified validation rows; 0 without validation


def fine_tune(
    rows: tuple[np.ndarray, np.ndarray],
    text: Text,
    cache: Cache,
    alpha: float = TRAIN_ALPHA,
    beta: float = TRAIN_BETA,
    *,
    epochs: int,
    lr: float,
    seed: int,
    device: str,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    base_logits: np.ndarray | None = None,
    own_keys: np.ndarray | None = None,
) -> Iterator[Epoch]:
    """Fine-tune the keys of a cache with the cross-entropy of `tip_logits`, and yield an Epoch after each epoch.

    The keys are trained like the weight of a linear layer and are not normalised again. All arrays stay on the device.
    Errors are raised when the first or a later Epoch is asked for.

    Parameters
    ----------
    rows : (float32 array of shape (R, D), int array of shape (R,))
        Features and labels to learn from: all views of the shots, R = N·V.
    text : Text
    cache : Cache
        The cache of the shots, whose keys are the initial value.
    alpha, beta : float
        As for `tip_logits`.
    epochs, lr, seed : int, float, int
        AdamW with a cosine schedule over all steps from `lr` to 0; `seed` determines the order of the rows.
    device : str
        As for `jclip.runtime.use`.
    validation : (float32 array of shape (M, D), int array of shape (M,)) or None
        Features and labels to validate on after each epoch.
    base_logits : float32 array of shape (R, C) or None
        The logits of the rows to which the cache is added; by default the zero-shot logits.
    own_keys : int array of shape (R,) or None
        If given, row r does not see key own_keys[r], and the cache adds to a class the mean over the keys that the row
        sees, not their sum. The class of each row needs another key.

    Raises
    ------
    ClipError
        If the device cannot be used.
    TaskError
        If the keys become NaN or infinite.
    """
    from jclip import runtime

    runtime.use(device)
    jt = runtime.jittor()
    from fewshot.cache_logits import CacheLogits, cross_entropy
    from fewshot.training import cosine_lr, descend, n_batches

    train = _on_device(jt, text, *rows, base_logits)
    val = _on_device(jt, text, *validation) if validation else None
    logits = CacheLogits(cache.values.argmax(axis=1), cache.values.shape[1], alpha, beta)
    keys = jt.array(cache.keys)
    optimizer = jt.optim.AdamW([keys], lr, eps=1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    n_rows, steps = len(rows[0]), epochs * n_batches(len(rows[0]))
    hidden = None if own_keys is None else _HiddenKeys(jt, own_keys, cache.values)

    def loss(batch):
        affinity, labels = jt.nn.matmul_transpose(train.features[batch], keys), train.labels[batch]
        if hidden is None:
            return cross_entropy(logits(affinity, train.base[batch]), labels)
        base = train.base[batch]
        return cross_entropy(base + hidden.means(batch, affinity, labels, base, logits), labels)

    for epoch in descend(optimizer, loss, n_rows, epochs, lambda _, step: cosine_lr(lr, step, steps), seed):
        if not np.isfinite(keys.sqr().sum().item()):
            raise TaskError(f"fine-tuning diverged in epoch {epoch + 1}; choose an --lr below {lr:g}")
        yield Epoch(keys.clone().stop_grad(), _count_correct(jt, logits, keys, val) if val else 0)


class _DeviceRows(NamedTuple):
    """Rows on the device, as Vars."""

    features: object  # float32 (R, D)
    base: object  # float32 (R, C), the logits to which the cache is added
    labels: object  # int32 (R,)


def _on_device(jt, text: Text, features: np.ndarray, labels: np.ndarray, base=None) -> _DeviceRows:
    base = text.scale * (features @ text.features.T) if base is None else base
    arrays = features, base, labels.astype(np.int32)
    return _DeviceRows(*(jt.array(x).stop_grad() for x in arrays))


class _HiddenKeys:
    """Hides from each row its own key, and turns the sums over the keys of a class into means."""

    def __init__(self, jt, own_keys: np.ndarray, values: np.ndarray):
        self.jt = jt
        self.own, self.counts = (
            jt.array(x).stop_grad() for x in (own_keys.astype(np.int32), values.sum(axis=0, dtype=np.float32))
        )

    def means(self, batch, affinity, labels, base, logits):
        """Return what the cache adds to the logits of a batch, (B, C)."""
        is_own = _matches(self.jt, affinity.shape, self.own[batch])
        # exp(−beta·(1 + 1e4)) is 0; affinities may be anything, since keys are not normalised again
        affinity = affinity * (1 - is_own) - 1e4 * is_own
        counts = self.counts.broadcast(base.shape, [0]) - _matches(self.jt, base.shape, labels)
        return logits(affinity, self.jt.zeros(base.shape)) / counts


def _matches(jt, shape, columns):
    """Return 1 where the column of a matrix is that of its row in `columns`, int32 (B,), else 0: float32 (B, n)."""
    return (jt.index(shape, 1) == columns.broadcast(shape, [1])).float32()


def _count_correct(jt, logits, keys, rows: _DeviceRows) -> int:
    """Return the number of rows whose predicted class is their label; a tie is predicted as the lowest label."""
    correct = 0
    with jt.no_grad():
        for chunk in chunks(len(rows.features), len(keys) + rows.base.shape[1], DEVICE_CHUNK):
            computed = logits(jt.nn.matmul_transpose(rows.features[chunk], keys), rows.base[chunk])
            labels, shape = rows.labels[chunk], computed.shape
            label_logit = computed.reindex(labels.shape, ["i0", "@e0(i0)"], extras=[labels]).broadcast(shape, [1])
            is_lower = jt.index(shape, 1) < labels.broadcast(shape, [1])
            ahead = (computed > label_logit) | ((computed == label_logit) & is_lower)
            correct += int((ahead.float32().sum(1) == 0).float32().sum().item())
    return correct
