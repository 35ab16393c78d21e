"""The parts of CLIP's transformer that are not matrix products, each in plain Jittor and as kernels of our own.

Jittor's generated kernels make one pass over memory for each operation, on the CPU by one core. Those of kernels.h
(CPU) and kernels.cuh (CUDA) make one pass for all, on all cores. Attention on the CPU has a gradient of its own; the
others have none and stand in under `jittor.no_grad()` only. On CUDA, where starting an operator takes Jittor longer
than running it takes the GPU, a whole block of the transformer is one operator.

Letters: n sequences, l positions, w width, h heads. Arrays are float32; on CUDA, what goes into matrix products and
comes out of them may be float16, and sums are float32 all the same.
"""

from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np

EPSILON = 1e-5  # of every layer norm in CLIP, torch.nn.LayerNorm's default
# Jittor looks at the content of included files, and compiles again where one has changed.
CPU_SOURCE, CUDA_SOURCE = (
    f'#include "{Path(__file__).with_name(name).resolve()}"\n' for name in ("kernels.h", "kernels.cuh")
)


def normalise(rgb: np.ndarray, levels: np.ndarray):
    """Pixels as the image tower reads them, computed on CUDA: the bytes that go there are a quarter of the floats.

    rgb uint8 (n, height, width, 3), levels float32 (256, 3): what becomes of each level of each channel
    -> Var float32 (n, 3, height, width)
    """
    n, height, width, _ = rgb.shape
    call = "normalise(in0_p, in1_p, out0_p, in0_shape0, in0_shape1 * in0_shape2)"
    return _run((n, 3, height, width), "float32", call, jt.array(rgb), jt.array(levels))


def patches(x, size: int, dtype: str = "float32"):
    """The squares of size x size pixels that images are cut into, each as a row: what a convolution of that stride
    multiplies.

    x float32 (n, 3, side, side) -> (n, (side / size)², 3·size²), in dtype
    """
    n, channels, side, _ = x.shape
    grid = side // size
    if (
        _device() == "cuda"
    ):  # Jittor's transposition gives a thread whole patches: 7 of the 8 ms that 32 images took on an H100
        return _run(
            (n, grid * grid, channels * size**2), dtype, f"patches(in0_p, out0_p, in0_shape0, in0_shape2, {size})", x
        )
    x = x.reshape(n, channels, grid, size, grid, size).permute((0, 2, 4, 1, 3, 5))
    return x.reshape(n, grid * grid, -1).cast(dtype)


def tokens(patches, first, positions):
    """The sequences that the image tower's transformer reads: the class token before the patches, and where each
    stands.

    patches (n, l - 1, w), first (w,), positions (l, w) -> float32 (n, l, w)
    """
    n, l, w = patches.shape[0], *positions.shape
    if _device() == "cuda":
        call = "tokens(in0_p, in1_p, in2_p, out0_p, out0_shape0, out0_shape1, out0_shape2)"
        return _run((n, l, w), "float32", call, patches, first, positions)
    return jt.concat([first.broadcast((n, 1, w)), patches], dim=1) + positions


def layer_norm(x, weight, bias, dtype: str = "float32"):
    """Layer normalisation over the last axis in two passes, mean first: Jittor's own, E[x²] − E[x]², loses digits.

    x (..., w), weight and bias (w,) -> the shape of x, in dtype. Ba et al., arXiv:1607.06450.
    """
    if _device():
        call = f"layer_norm(in0_p, in1_p, in2_p, out0_p, in0->num / in1->num, in1->num, {EPSILON}f)"
        return _run(x.shape, dtype, call, x, weight, bias)
    width = x.shape[-1]
    centred = x - x.sum(-1, keepdims=True) / width
    variance = centred.sqr().sum(-1, keepdims=True) / width
    return (centred / (variance + EPSILON).sqrt() * weight + bias).cast(dtype)


def quick_gelu(x, bias):
    """z · sigmoid(1.702 z) of z = x + bias, with which OpenAI trained CLIP. Hendrycks & Gimpel, arXiv:1606.08415,
    section 2.

    x (..., w), bias (w,) -> the shape and dtype of x
    """
    if _device():
        return _run(x.shape, str(x.dtype), "quick_gelu(in0_p, in1_p, out0_p, in0->num / in1->num, in1->num)", x, bias)
    z = x + bias
    return (z * (z * 1.702).sigmoid()).cast(str(x.dtype))


def residual(x, branch, bias):
    """x + branch + bias: what a branch of the network adds to its input.

    x float32 and branch (..., w), bias (w,) -> float32, the shape of x
    """
    if _device():
        call = "residual(in0_p, in1_p, in2_p, out0_p, in0->num / in2->num, in2->num)"
        return _run(x.shape, "float32", call, x, branch, bias)
    return x + (branch + bias)


def attention(qkv, bias, heads: int, causal: bool):
    """Scaled dot-product attention of every position over the positions of its sequence (over earlier ones if causal).

    qkv (n, l, 3w): queries, keys and values side by side, each of `heads` heads of w / heads, and bias (3w,), which is
    added to them -> (n, l, w) of the dtype of qkv. Vaswani et al., arXiv:1706.03762, section 3.2. On the CPU it has a
    first derivative only; the plain way, which CUDA takes where there are gradients, has them all.
    """
    n, l, w3 = qkv.shape
    device, shape, sizes = _device(), (n, l, w3 // 3), f"in0_shape0, in0_shape1, in0_shape2 / 3, {heads}, {int(causal)}"
    if device == "cuda":
        return _run(shape, str(qkv.dtype), f"attention<{w3 // 3 // heads}>(in0_p, in1_p, out0_p, {sizes})", qkv, bias)
    if jt.flags.use_cuda:
        return plain_attention(qkv, bias, heads, causal)
    gradient = None
    if not device:  # the kernel knows the gradient of qkv + bias; what that means for the bias is left to Jittor
        qkv, bias, gradient = (
            qkv + bias,
            jt.zeros(bias.shape).stop_grad(),
            f"attention_gradient(in0_p, dout_p, out0_p, {sizes})",
        )
    return _run(shape, "float32", f"attention(in0_p, in1_p, out0_p, {sizes})", qkv, bias, gradient=gradient)


def plain_attention(qkv, bias, heads: int, causal: bool):
    """`attention` without the kernels."""
    n, l, w3 = qkv.shape
    depth = w3 // 3 // heads
    q, k, v = (qkv + bias).reshape(n, l, 3, heads, depth).permute((2, 0, 3, 1, 4))  # each (n, h, l, depth)
    scores = jt.matmul(q * depth**-0.5, k.transpose(2, 3))  # (n, h, l, l)
    if causal:
        later = jt.index((l, l), 1) > jt.index((l, l), 0)
        scores = scores + later.float32() * -1e9
    return (
        jt.matmul(jt.nn.softmax(scores, dim=-1), v)
        .permute((0, 2, 1, 3))
        .reshape(n, l, heads * depth)
        .cast(str(qkv.dtype))
    )


def block(x, rows, parameters: list, heads: int, causal: bool):
    """A block of the transformer as one operator, matrix products included; None where it is not to be had.

    Parameters
    ----------
    x : float32 (n, l, w)
    rows : int32 (n,) or None; of the n·l rows those that are wanted, one a sequence
    parameters : weight and bias of the first layer norm, of queries, keys and values, of their projection, of the
        second layer norm, and of the MLP's two layers, twelve Vars; the matrices' dtype is that of the products

    Returns
    -------
    float32 (n, l, w), or (n, w) with `rows`
    """
    if _device() != "cuda":
        return None
    n, l, w = x.shape
    taken = [] if rows is None else [rows]
    arguments = [*(f"in{i}_p" for i in range(13)), "in13_p" if taken else "nullptr", "out0_p", "out1_p"]
    arguments += ["in0_shape0", "in0_shape1", "in0_shape2", str(heads), str(int(causal)), f"{EPSILON}f"]
    call = f"block<{w // heads}>({', '.join(arguments)})"
    shapes = [(n, w) if taken else (n, l, w), (n * l * 5 * w,)]
    return _run(shapes, ["float32", str(parameters[2].dtype)], call, x, *parameters, *taken)[0]


def _device() -> str | None:
    """Whose kernels stand in: "cpu" or "cuda"; None where gradients are wanted, which most of them do not have."""
    return None if not jt.flags.no_grad else "cuda" if jt.flags.use_cuda else "cpu"


def _run(shape, dtype, call: str, *inputs, gradient: str | None = None):
    """A Var, or several, that a function of kernels.h or kernels.cuh fills; `gradient` fills that of the first
    input."""
    if jt.flags.use_cuda:
        return jt.code(shape, dtype, list(inputs), cuda_header=CUDA_SOURCE, cuda_src=f"clip::{call}; clip::check();")
    return jt.code(
        shape,
        dtype,
        list(inputs),
        cpu_header=CPU_SOURCE,
        cpu_src=f"clip::{call};",
        cpu_grad_src=[f"clip::{gradient};"] if gradient else [],
    )
