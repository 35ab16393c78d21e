"""Tip-Adapter's logits and its fine-tuning loss as Jittor operators, for one-hot cache values.

`tip_adapter_utils.tip_logits` has the formula. Most of the time of `tip_logits` goes into the product with the values;
for one-hot values that product is a sum over the keys of each class, with N additions per row in place of N·C. Both
operators have a gradient; that of the logits is with respect to the affinity only.

Letters: B rows, N keys, C classes.
"""

from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np

from jclip import kernels

CPU_SOURCE, CUDA_SOURCE = (
    f'{prefix}#include "{Path(__file__).with_name(name).resolve()}"\n'
    for prefix, name in ((kernels.CPU_SOURCE, "cache_logits.h"), (kernels.CUDA_SOURCE, "cache_logits.cuh"))
)


class CacheLogits:
    """An operator that computes the logits of a cache.

    Parameters
    ----------
    labels : int array of shape (N,)
        The class of each key.
    n_classes : int
        C, the number of classes.
    alpha : float
        Weight of the cache.
    beta : float
        Sharpness of the affinities.
    """

    def __init__(self, labels: np.ndarray, n_classes: int, alpha: float, beta: float):
        counts = np.bincount(labels, minlength=n_classes)
        self.labels, self.members, self.starts = (
            jt.array(x.astype(np.int32)).stop_grad()
            for x in (labels, np.argsort(labels, kind="stable"), np.cumsum([0, *counts]))
        )
        self.arguments = f"in0_shape0, in0_shape1, in1_shape1, {float(alpha)!r}f, {float(beta)!r}f"

    def __call__(self, affinity, zero_shot):
        """Return zero_shot + alpha·Σ exp(−beta·(1 − affinity)), float32 (B, C); the sum is over the keys of each class.

        affinity : float32 (B, N), similarities of the rows with the keys; zero_shot : float32 (B, C), zero-shot logits
        """
        launch = "<<<(out0->num + 255) / 256, 256>>>"
        forward_source = f"cache::logits{launch}(in0_p, in1_p, in3_p, in4_p, out0_p, {self.arguments}); clip::check();"
        gradient_source = f"cache::gradient{launch}(in0_p, in2_p, dout_p, out0_p, {self.arguments}); clip::check();"
        return jt.code(
            zero_shot.shape,
            "float32",
            [affinity, zero_shot, self.labels, self.members, self.starts],
            cpu_header=CPU_SOURCE,
            cpu_src=f"cache::logits(in0_p, in1_p, in2_p, out0_p, {self.arguments});",
            cpu_grad_src=[f"cache::gradient(in0_p, in2_p, dout_p, out0_p, {self.arguments});"],
            cuda_header=CUDA_SOURCE,
            cuda_src=forward_source,
            cuda_grad_src=[gradient_source],
        )


def cross_entropy(logits, labels):
    """Return the mean cross-entropy of logits, float32 (B, C), with labels, int32 (B,), as a Var of one element."""
    return cuda_cross_entropy(logits, labels) if jt.flags.use_cuda else jt.nn.cross_entropy_loss(logits, labels)


def cuda_cross_entropy(logits, labels):
    """Return the same as `cross_entropy`, with two CUDA kernels.

    Jittor's own loss uses about twelve, and launching them takes longer than running them.
    """
    launch = "<<<in0_shape0, 128>>>(in0_p, in1_p"
    losses = jt.code(
        labels.shape,
        "float32",
        [logits, labels],
        cuda_header=CUDA_SOURCE,
        cuda_src=f"cache::cross_entropy{launch}, out0_p, in0_shape1); clip::check();",
        cuda_grad_src=[f"cache::cross_entropy_gradient{launch}, dout_p, out0_p, in0_shape1); clip::check();"],
    )
    return losses.mean()
