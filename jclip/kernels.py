"""The operations of CLIP's transformer other than matrix products, each in plain Jittor and as a kernel of our own.

Jittor's generated kernels make one pass over memory for each elementary operation, and on the CPU use one core. The
kernels of kernels.h (CPU) and kernels.cuh (CUDA) make one pass for the whole operation, on all cores. They are used
under `jittor.no_grad()` only, because they have no gradients: Jittor would take them for zero without a word. Attention
on the CPU does have one and is always used. On CUDA a whole block of the transformer is one operator, because Jittor
takes longer to start an operator than the GPU to compute it.

Letters in shapes: n sequences, l positions, w width, h heads. Arrays are float32. On CUDA, the inputs and results of
matrix products may be float16, on the CPU the inputs bfloat16 (float32 where gradients are wanted); sums are float32
all the same.
"""

from __future__ import annotations

from pathlib import Path

import jittor as jt
import numpy as np

from . import no_grad
from .errors import ClipError

EPSILON = 1e-5  # of every layer norm in CLIP, torch.nn.LayerNorm's default
# Jittor hashes included files and compiles again if one has changed.
CPU_SOURCE, HALF_SOURCE, CUDA_SOURCE = (
    f'#include "{Path(__file__).with_name(name).resolve()}"\n' for name in ("kernels.h", "half.h", "kernels.cuh")
)
HALF_SOURCE = CPU_SOURCE + HALF_SOURCE
NO_BFLOAT16 = "no instructions for bfloat16"  # RuntimeError of `half`
KERNEL = ""  # a struct of half.h that computes products in bfloat16; by default the fastest that the CPU has

no_grad.share_between_threads(jt)  # a block decides which code computes


def normalise(rgb: np.ndarray, levels: np.ndarray):
    """Normalise pixels on CUDA: a byte a channel is copied to the GPU, a quarter of what floats would be.

    Parameters
    ----------
    rgb : array, uint8 (n, height, width, 3)
    levels : array, float32 (256, 3)
        The normalised value of each level of each channel, `preprocess.LEVELS`.

    Returns
    -------
    Var, float32 (n, 3, height, width)
    """
    n, height, width, _ = rgb.shape
    call = "normalise(in0_p, in1_p, out0_p, in0_shape0, in0_shape1 * in0_shape2)"
    return _run((n, 3, height, width), "float32", call, jt.array(rgb), jt.array(levels))


def patches(x, size: int, dtype: str = "float32"):
    """Cut images into patches, one a row; a matrix product of the rows is a convolution with stride `size`.

    Parameters
    ----------
    x : Var, float32 (n, 3, side, side)
    size : int, side of a patch in pixels
    dtype : dtype of the result

    Returns
    -------
    Var, (n, (side / size)², 3·size²)
    """
    n, channels, side, _ = x.shape
    grid = side // size
    # In Jittor's own transposition a thread copies whole patches, on CUDA as well: 7 of 8 ms for 32 images, H100.
    if _device():
        shape = (n, grid * grid, channels * size**2)
        return _run(shape, dtype, f"patches(in0_p, {_out(dtype)}, in0_shape0, in0_shape2, {size})", x)
    x = x.reshape(n, channels, grid, size, grid, size).permute((0, 2, 4, 1, 3, 5))  # (n, grid, grid, 3, size, size)
    return _cast(x.reshape(n, grid * grid, -1), dtype)


def tokens(patches, first, positions):
    """Put the class token before the patches of each image, and add the positional embedding.

    Parameters
    ----------
    patches : Var, (n, l - 1, w)
    first : Var, float32 (w,), the class token
    positions : Var, float32 (l, w), the positional embedding

    Returns
    -------
    Var, float32 (n, l, w)
    """
    n, l, w = patches.shape[0], *positions.shape
    if _device():
        call = "tokens(in0_p, in1_p, in2_p, out0_p, out0_shape0, out0_shape1, out0_shape2)"
        return _run((n, l, w), "float32", call, patches, first, positions)
    return jt.concat([first.broadcast((n, 1, w)), patches], dim=1) + positions


def layer_norm(x, weight, bias, dtype: str = "float32"):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it (Ba et al., arXiv:1607.06450).

    The mean is computed first, then the variance. Jittor's own layer norm computes E[x²] − E[x]², which loses digits.

    Parameters
    ----------
    x : Var, float32 (..., w)
    weight, bias : Var, float32 (w,)
    dtype : dtype of the result

    Returns
    -------
    Var, the shape of x
    """
    if _device():
        call = f"layer_norm(in0_p, in1_p, in2_p, {_out(dtype)}, in0->num / in1->num, in1->num, {EPSILON}f)"
        return _run(x.shape, dtype, call, x, weight, bias)
    width = x.shape[-1]
    centred = x - x.sum(-1, keepdims=True) / width
    variance = centred.sqr().sum(-1, keepdims=True) / width
    return _cast(centred / (variance + EPSILON).sqrt() * weight + bias, dtype)


def quick_gelu(x, bias, dtype: str | None = None):
    """Add a bias and apply QuickGELU, z · sigmoid(1.702 z) (Hendrycks & Gimpel, arXiv:1606.08415, section 2).

    OpenAI trained CLIP with this approximation of GELU.

    Parameters
    ----------
    x : Var, (..., w)
    bias : Var, float32 (w,)
    dtype : dtype of the result, by default that of x

    Returns
    -------
    Var, the shape of x
    """
    if _device():
        return _activation("quick_gelu", x, bias, dtype)
    z = x + bias
    return _cast(z * (z * 1.702).sigmoid(), dtype or str(x.dtype))


def gelu(x, bias, dtype: str | None = None):
    """Add a bias and apply GELU, z · Φ(z), in its exact form (Hendrycks & Gimpel, arXiv:1606.08415, section 2).

    Most models of open_clip have it.

    Parameters
    ----------
    x : Var, (..., w)
    bias : Var, float32 (w,)
    dtype : dtype of the result, by default that of x

    Returns
    -------
    Var, the shape of x
    """
    if _device():
        return _activation("gelu", x, bias, dtype)
    z = x + bias
    return _cast(z * ((z * 0.5**0.5).erf() + 1) * 0.5, dtype or str(x.dtype))


def _activation(name: str, x, bias, dtype: str | None):
    dtype = dtype or str(x.dtype)
    return _run(x.shape, dtype, f"{name}(in0_p, in1_p, {_out(dtype)}, in0->num / in1->num, in1->num)", x, bias)


ACTIVATIONS = {"quickgelu": quick_gelu, "gelu": gelu}  # by the names of jclip/settings.py


def residual(x, branch, bias):
    """Add a branch of the network and its bias to the residual stream: x + branch + bias.

    Parameters
    ----------
    x : Var, float32 (..., w)
    branch : Var, (..., w)
    bias : Var, float32 (w,)

    Returns
    -------
    Var, float32, the shape of x
    """
    if _device():
        call = "residual(in0_p, in1_p, in2_p, out0_p, in0->num / in2->num, in2->num)"
        return _run(x.shape, "float32", call, x, branch, bias)
    return x + (branch + bias)


def attention(qkv, bias, heads: int, causal: bool):
    """Compute scaled dot-product attention within each sequence (Vaswani et al., arXiv:1706.03762, section 3.2).

    The CPU kernel has a first derivative only; a second one raises ClipError. `plain_attention`, which CUDA uses where
    gradients are wanted, has all.

    Parameters
    ----------
    qkv : Var, (n, l, 3w)
        Queries, keys and values side by side, each of `heads` heads of width w / heads.
    bias : Var, float32 (3w,)
        It is added to qkv first.
    heads : int
    causal : bool
        Whether a position attends to itself and earlier ones only.

    Returns
    -------
    Var, (n, l, w), of the dtype of qkv, on the CPU float32
    """
    dtype = str(qkv.dtype)
    n, l, w3 = qkv.shape
    device, shape, sizes = _device(), (n, l, w3 // 3), f"in0_shape0, in0_shape1, in0_shape2 / 3, {heads}, {int(causal)}"
    if device == "cuda":
        return _run(shape, dtype, f"attention<{w3 // 3 // heads}>(in0_p, in1_p, out0_p, {sizes})", qkv, bias)
    if jt.flags.use_cuda:
        return plain_attention(qkv, bias, heads, causal)
    if device is None:
        return _Attention(heads, causal)(qkv + bias)
    return _run(shape, dtype, f"attention(in0_p, in1_p, out0_p, {sizes})", qkv, bias)


class _Attention(jt.Function):
    """The CPU kernel of attention, where gradients are wanted; it takes the sum of qkv and bias.

    __call__ gives `execute` copies of its inputs, from which no gradient of a gradient leads back; `grad` needs the
    inputs themselves.
    """

    def __init__(self, heads: int, causal: bool):
        self.heads, self.causal = heads, causal
        self.sizes = f"in0_shape0, in0_shape1, in0_shape2 / 3, {heads}, {int(causal)}"

    def __call__(self, *inputs):
        self.inputs = inputs
        return super().__call__(*inputs)

    def execute(self, qkv):
        n, l, w3 = qkv.shape
        return _run((n, l, w3 // 3), "float32", f"attention(in0_p, in1_p, out0_p, {self.sizes})", qkv, jt.zeros((w3,)))

    def grad(self, slope):
        return _AttentionGradient(self.heads, self.causal)(*self.inputs, slope)


class _AttentionGradient(_Attention):
    """The kernel of the gradient of attention."""

    def execute(self, qkv, slope):
        return _run(qkv.shape, "float32", f"attention_gradient(in0_p, in1_p, out0_p, {self.sizes})", qkv, slope)

    def grad(self, slope):
        raise ClipError(
            "a gradient of a gradient was asked for, and attention on the CPU has only a first derivative; put "
            "jclip.kernels.plain_attention, which has all, in the place of jclip.kernels.attention"
        )


def plain_attention(qkv, bias, heads: int, causal: bool):
    """Compute `attention` in plain Jittor; parameters and result are the same."""
    n, l, w3 = qkv.shape
    depth = w3 // 3 // heads
    q, k, v = (qkv + bias).reshape(n, l, 3, heads, depth).permute((2, 0, 3, 1, 4))  # each (n, h, l, depth)
    scores = jt.matmul(q * depth**-0.5, k.transpose(2, 3))  # (n, h, l, l)
    if causal:
        is_later = jt.index((l, l), 1) > jt.index((l, l), 0)
        scores = scores + is_later.float32() * -1e9
    mixed = jt.matmul(jt.nn.softmax(scores, dim=-1), v)  # (n, h, l, depth)
    return mixed.permute((0, 2, 1, 3)).reshape(n, l, heads * depth).cast(str(qkv.dtype))


def block(x, rows, parameters: list, heads: int, causal: bool, activation: str):
    """Compute a block of the transformer, matrix products included, as one operator on CUDA without gradients.

    Parameters
    ----------
    x : Var, float32 (n, l, w)
    rows : Var or None
        int32 (n,): one row of each sequence, as indices of the n·l rows of x; only these are computed.
    parameters : sequence of twelve Vars
        Weight and bias of, in this order: the first layer norm, the projection to queries, keys and values, the output
        projection, the second layer norm, and the two layers of the MLP. Matrices have the dtype of the products.
    heads : int
    causal : bool
    activation : a key of ACTIVATIONS

    Returns
    -------
    Var, float32 (n, l, w), or (n, w) with `rows`; None on the CPU and where gradients are wanted
    """
    if _device() != "cuda":
        return None
    n, l, w = x.shape
    optional = [] if rows is None else [rows]
    arguments = [*(f"in{i}_p" for i in range(13)), "in13_p" if optional else "nullptr", "out0_p", "out1_p"]
    wide = -(-max(3 * w, parameters[8].shape[0]) // 8) * 8  # a multiple of 8, which keeps what follows it aligned
    arguments += ["in0_shape0", "in0_shape1", "in0_shape2", "in9_shape0", str(wide), str(heads), str(int(causal))]
    call = f"block<{w // heads}, {int(activation == 'gelu')}>({', '.join([*arguments, f'{EPSILON}f'])})"
    shapes = [(n, w) if optional else (n, l, w), (n * l * (wide + w),)]  # the result and scratch memory
    return _run(shapes, ["float32", str(parameters[2].dtype)], call, x, *parameters, *optional)[0]


def bfloat16(x):
    """Round x to bfloat16, to nearest and to even between two; Jittor's own cast cuts digits off.

    Parameters
    ----------
    x : Var, float32, or bfloat16, which is returned as it is

    Returns
    -------
    Var, bfloat16
    """
    if str(x.dtype) == "bfloat16":
        return x
    return _run(x.shape, "bfloat16", f"convert(in0_p, {_out('bfloat16')}, in0->num)", x)


def half(shape, dtype: str, call: str, *inputs):
    """Return the Var that a function of half.h fills; `_run` says how. Its template argument is Kernel.

    Without the instructions for it, RuntimeError is raised where the result is computed.
    """
    chosen = f"with_kernel<clip::{KERNEL}>" if KERNEL else "with_fastest"
    code = f"clip::{chosen}([&](auto kernel) {{ typedef decltype(kernel) Kernel; clip::{call}; }})"
    code = f'if (!{code}) throw std::runtime_error("{NO_BFLOAT16}");'
    return jt.code(shape, dtype, list(inputs), cpu_header=HALF_SOURCE, cpu_src=code)


def _cast(x, dtype: str):
    """Cast what plain Jittor has computed, which stays float32 in the place of bfloat16."""
    return x if dtype == "bfloat16" else x.cast(dtype)


def _out(dtype: str) -> str:
    """Return the C++ for a pointer to a result; Jittor's own type of bfloat16 does not round."""
    return "(clip::Bfloat16*)out0_p" if dtype == "bfloat16" else "out0_p"


def _device() -> str | None:
    """Return the device whose kernels are used, "cpu" or "cuda", or None where gradients are wanted."""
    return None if not jt.flags.no_grad else "cuda" if jt.flags.use_cuda else "cpu"


def _run(shape, dtype, call: str, *inputs):
    """Return the Var that a function of kernels.h or kernels.cuh fills, or several Vars if `shape` is a list.

    Parameters
    ----------
    shape, dtype : of the result, or a list of each
    call : str
        The C++ call. in0_p, out0_p, in0_shape0, … are Jittor's names for data and shapes of inputs and results.
    inputs : Vars
    """
    if jt.flags.use_cuda:
        return jt.code(shape, dtype, list(inputs), cuda_header=CUDA_SOURCE, cuda_src=f"clip::{call}; clip::check();")
    return jt.code(shape, dtype, list(inputs), cpu_header=CPU_SOURCE, cpu_src=f"clip::{call};")
