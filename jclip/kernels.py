"""The parts of CLIP's transformer that are not matrix products, each in plain Jittor and as a kernel of our own for the CPU.

Jittor's generated kernels run on one core of a CPU, one pass over memory for each operation; those of kernels.h use all cores and
one pass. Attention has a gradient of its own, too; the others have none and stand in under `jittor.no_grad()` only. CUDA takes the
plain way.

Letters: n sequences, l positions, w width, h heads. All arrays are float32.
"""
from __future__ import annotations

from pathlib import Path

import jittor as jt

EPSILON = 1e-5  # of every layer norm in CLIP, torch.nn.LayerNorm's default
SOURCE = Path(__file__).with_name("kernels.h").read_text(encoding="utf-8")


def layer_norm(x, weight, bias):
    """Layer normalisation over the last axis in two passes, mean first: Jittor's own, E[x²] − E[x]², loses digits.

    x (..., w), weight and bias (w,) -> the shape of x. Ba et al., arXiv:1607.06450.
    """
    if _on_cpu():
        return _run(x.shape, f"layer_norm(in0_p, in1_p, in2_p, out0_p, in0->num / in1->num, in1->num, {EPSILON}f)", x, weight, bias)
    width = x.shape[-1]
    centred = x - x.sum(-1, keepdims=True) / width
    variance = centred.sqr().sum(-1, keepdims=True) / width
    return centred / (variance + EPSILON).sqrt() * weight + bias


def quick_gelu(x, bias):
    """z · sigmoid(1.702 z) of z = x + bias, with which OpenAI trained CLIP. Hendrycks & Gimpel, arXiv:1606.08415, section 2.

    x (..., w), bias (w,) -> the shape of x
    """
    if _on_cpu():
        return _run(x.shape, "quick_gelu(in0_p, in1_p, out0_p, in0->num / in1->num, in1->num)", x, bias)
    x = x + bias
    return x * (x * 1.702).sigmoid()


def residual(x, branch, bias):
    """x + branch + bias: what a branch of the network adds to its input.

    x and branch (..., w), bias (w,) -> the shape of x
    """
    if _on_cpu():
        return _run(x.shape, "residual(in0_p, in1_p, in2_p, out0_p, in0->num / in2->num, in2->num)", x, branch, bias)
    return x + (branch + bias)


def attention(qkv, bias, heads: int, causal: bool):
    """Scaled dot-product attention of every position over the positions of its sequence (over earlier ones if causal).

    qkv (n, l, 3w): queries, keys and values side by side, each of `heads` heads of w / heads, and bias (3w,), which is added
    to them -> (n, l, w). Vaswani et al., arXiv:1706.03762, section 3.2. On the CPU it has a first derivative only; the plain way
    has them all.
    """
    if jt.flags.use_cuda:
        return plain_attention(qkv, bias, heads, causal)
    n, l, w3 = qkv.shape
    sizes, gradient = f"in0_shape0, in0_shape1, in0_shape2 / 3, {heads}, {int(causal)}", None
    if not jt.flags.no_grad:  # the kernel knows the gradient of qkv + bias; what that means for the bias is left to Jittor
        qkv, bias, gradient = qkv + bias, jt.zeros(bias.shape).stop_grad(), f"attention_gradient(in0_p, dout_p, out0_p, {sizes})"
    return _run((n, l, w3 // 3), f"attention(in0_p, in1_p, out0_p, {sizes})", qkv, bias, gradient=gradient)


def plain_attention(qkv, bias, heads: int, causal: bool):
    """`attention` without the kernel."""
    n, l, w3 = qkv.shape
    depth = w3 // 3 // heads
    q, k, v = (qkv + bias).reshape(n, l, 3, heads, depth).permute((2, 0, 3, 1, 4))  # each (n, h, l, depth)
    scores = jt.matmul(q * depth**-0.5, k.transpose(2, 3))  # (n, h, l, l)
    if causal:
        later = jt.index((l, l), 1) > jt.index((l, l), 0)
        scores = scores + later.float32() * -1e9
    return jt.matmul(jt.nn.softmax(scores, dim=-1), v).permute((0, 2, 1, 3)).reshape(n, l, heads * depth)


def _on_cpu() -> bool:
    return jt.flags.no_grad and not jt.flags.use_cuda


def _run(shape, call: str, *inputs, gradient: str | None = None):
    """A Var of `shape` that a function of kernels.h fills; `gradient` fills that of the first input."""
    return jt.code(shape, "float32", list(inputs), cpu_header=SOURCE, cpu_src=f"clip::{call};", cpu_grad_src=[f"clip::{gradient};"] if gradient else [])
