"""Tip-Adapter's logits and the loss of its fine-tuning as Jittor operators, for values that are one-hot.

`tip_adapter_utils.tip_logits` is the formula; a product with one-hot values, which takes most of its time, is a sum by
class here: N numbers a row in place of N·C. Both operators have a gradient, the logits by the affinity alone.

Letters: B rows, N keys, C classes.
"""

from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np

from jclip import kernels

CPU_SOURCE, CUDA_SOURCE = (
    f'{before}#include "{Path(__file__).with_name(name).resolve()}"\n'
    for before, name in ((kernels.CPU_SOURCE, "cache_logits.h"), (kernels.CUDA_SOURCE, "cache_logits.cuh"))
)


class CacheLogits:
    """The logits of a cache whose keys have the classes `labels`, int (N,), of C."""

    def __init__(self, labels: np.ndarray, classes: int, alpha: float, beta: float):
        counts = np.bincount(labels, minlength=classes)
        self.labels, self.members, self.starts = (
            jt.array(x.astype(np.int32)).stop_grad()
            for x in (labels, np.argsort(labels, kind="stable"), np.cumsum([0, *counts]))
        )
        self.sizes = f"in0_shape0, in0_shape1, in1_shape1, {alpha!r}f, {beta!r}f"

    def __call__(self, affinity, base):
        """base + alpha·Σ exp(−beta·(1 − affinity)) over the keys of each class.

        affinity float32 (B, N), base float32 (B, C) -> float32 (B, C)
        """
        launch = "<<<(out0->num + 255) / 256, 256>>>"
        sums = f"cache::logits{launch}(in0_p, in1_p, in3_p, in4_p, out0_p, {self.sizes}); clip::check();"
        slopes = f"cache::gradient{launch}(in0_p, in2_p, dout_p, out0_p, {self.sizes}); clip::check();"
        return jt.code(
            base.shape,
            "float32",
            [affinity, base, self.labels, self.members, self.starts],
            cpu_header=CPU_SOURCE,
            cpu_src=f"cache::logits(in0_p, in1_p, in2_p, out0_p, {self.sizes});",
            cpu_grad_src=[f"cache::gradient(in0_p, in2_p, dout_p, out0_p, {self.sizes});"],
            cuda_header=CUDA_SOURCE,
            cuda_src=sums,
            cuda_grad_src=[slopes],
        )


def cross_entropy(logits, labels):
    """Mean cross-entropy of logits float32 (B, C) at labels int32 (B,), a Var of one element."""
    return cuda_cross_entropy(logits, labels) if jt.flags.use_cuda else jt.nn.cross_entropy_loss(logits, labels)


def cuda_cross_entropy(logits, labels):
    """The same in two kernels; Jittor's own are a dozen, which take longer to launch than to run."""
    launch = "<<<in0_shape0, 128>>>(in0_p, in1_p"
    rows = jt.code(
        labels.shape,
        "float32",
        [logits, labels],
        cuda_header=CUDA_SOURCE,
        cuda_src=f"cache::cross_entropy{launch}, out0_p, in0_shape1); clip::check();",
        cuda_grad_src=[f"cache::cross_entropy_gradient{launch}, dout_p, out0_p, in0_shape1); clip::check();"],
    )
    return rows.mean()
