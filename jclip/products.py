"""Matrix products, and layers that are made of one.

Products with a bfloat16 matrix are those of the CPU's half precision: half.h computes them, from a copy of the matrix
in an order of its own, with float32 sums and whatever follows the product. They have no gradients; where these are
wanted, the matrix is used as float32.
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from . import kernels
from .errors import ClipError
from .module import Module

SQUARE = 32  # half.h pads both sides of a packed matrix to multiples of it

# Without AVX-512, oneDNN 2.2 computes the last rows of a small product by other code, which rounds differently. It does
# not do so if the number of rows is a multiple of ROW_MULTIPLE. A product counts as small if it has fewer than FEW_ROWS
# rows, or the matrix is narrower than NARROW.
ROW_MULTIPLE, FEW_ROWS, NARROW = 24, 640, 512


def matmul(x, matrix, transposed: bool = True):
    """Multiply x (n, ..., a) by the transpose of matrix (b, a), or by matrix (a, b) itself; the result is (n, ..., b).

    A matrix (b, ...) of more dimensions is one of two; it is that of a convolution whose stride is its side.

    The product is computed in two dimensions, which oneDNN runs on all cores. Without gradients on the CPU, the bits of
    a row depend neither on its index nor on the other rows; zero rows are added if that needs them. (If n is 1, there
    is nothing to compare with, and none are added.)
    """
    rows, width = x.reshape(-1, x.shape[-1]), matrix.shape[0 if transposed else 1]
    if _is_half(matrix):
        return _multiply(x, matrix, "float32", "Stored{out0_p, out0_shape1}", transposed=transposed)
    if str(matrix.dtype) == "bfloat16":
        rows, matrix = rows.float32(), matrix.float32()
    matrix = matrix.reshape(matrix.shape[0], -1) if len(matrix.shape) > 2 else matrix
    if jt.flags.use_cuda and jt.flags.no_grad:  # jt.matmul gives the same, but Jittor takes time to recognise it
        out = jt.compile_extern.cublas_ops.cublas_matmul(rows, matrix, False, transposed)
    else:
        count = rows.shape[0]
        is_small = count < FEW_ROWS or min(matrix.shape) < NARROW
        missing = -count % ROW_MULTIPLE if is_small and jt.flags.no_grad and x.shape[0] > 1 else 0
        if missing:
            rows = jt.concat([rows, jt.zeros((missing, rows.shape[1]), str(rows.dtype))])
        out = (jt.nn.matmul_transpose if transposed else jt.matmul)(rows, matrix)
        out = out[:count] if missing else out
    return out.reshape(*x.shape[:-1], width)


def _is_half(matrix) -> bool:
    return str(matrix.dtype) == "bfloat16" and jt.flags.no_grad and not jt.flags.use_cuda


def _multiply(x, matrix, dtype: str, finish: str, *inputs, transposed: bool = True):
    """Compute `matmul` by half.h, whose struct `finish` writes the result from the sums and the inputs in2, in3, ….

    The bits of a row depend neither on its index nor on the other rows.
    """
    rows, width = kernels.bfloat16(x).reshape(-1, x.shape[-1]), matrix.shape[0 if transposed else 1]
    call = (
        "multiply<Kernel>((clip::Bfloat16*)in0_p, (clip::Bfloat16*)in1_p, in0_shape0, in0_shape1, out0_shape1, "
        f"clip::{finish})"
    )
    inputs = rows, _packed(matrix, transposed), *inputs
    return kernels.half((rows.shape[0], width), dtype, call, *inputs).reshape(*x.shape[:-1], width)


def _packed(matrix, transposed: bool):
    """Return a matrix in the order of half.h; Jittor gives a Var whose value is replaced another id."""
    made_from, packed = getattr(matrix, "packed", (None, None))
    if made_from != (matrix.id, transposed):
        width = matrix.shape[0 if transposed else 1]
        size = _padded(width) * _padded(int(np.prod(matrix.shape)) // width)
        outputs = "in0_shape0" if transposed else "in0_shape1"  # no number: each would be compiled for itself
        sizes = f"{outputs}, in0->num / {outputs}, {int(not transposed)}"
        call = f"pack((clip::Bfloat16*)in0_p, {sizes}, (clip::Bfloat16*)out0_p)"
        packed = kernels.half((size,), "bfloat16", call, matrix)
        matrix.packed = (matrix.id, transposed), packed
    return packed


def _padded(side: int) -> int:
    return -(-side // SQUARE) * SQUARE


def _activated(function: str) -> str:
    """Return the C++ for what follows a product: a function of kernels.h of the sums and the bias, as bfloat16."""
    return f"Activated<clip::{function}>{{in2_p, (clip::Bfloat16*)out0_p, out0_shape1}}"


def attention(x, matrix, bias, heads: int, causal: bool):
    """Compute `kernels.attention` of the queries, keys and values that x (n, l, w) makes by matrix (3w, w) and bias.

    The result is what the next product multiplies: bfloat16 if the matrix is, unless gradients are wanted.
    """
    if not _is_half(matrix):
        return kernels.attention(matmul(x, matrix), bias, heads, causal)
    qkv = _multiply(x, matrix, "bfloat16", _activated("identity"), bias)
    sizes = f"in0_shape0, in0_shape1, in0_shape2 / 3, {heads}, {int(causal)}"
    call = f"half_attention<Kernel>((clip::Bfloat16*)in0_p, (clip::Bfloat16*)out0_p, {sizes})"
    return kernels.half(x.shape, "bfloat16", call, qkv)


def check_bfloat16() -> None:
    """Raise ClipError if bfloat16 products cannot be computed here; Jittor would find out at the first result."""
    advice = "run with --precision float32"
    x, matrix = (np.arange(n * 100).reshape(n, 100) % 13 - 6 for n in (70, 80))  # with sums that are exact
    try:
        with jt.no_grad():
            product = matmul(jt.array(x.astype(np.float32)), kernels.bfloat16(jt.array(matrix.astype(np.float32))))
            found = product.numpy()
    except RuntimeError as error:
        if kernels.NO_BFLOAT16 not in str(error):
            raise
        raise ClipError(
            "--precision half: the C++ compiler makes no code for bfloat16 on this CPU; install g++ 11 or later, or "
            f"{advice}"
        ) from error
    if not np.array_equal(found, x @ matrix.T):
        raise ClipError(f"--precision half: this CPU's bfloat16 products are wrong; {advice}")


class Linear(Module):
    """A linear layer that multiplies only, unless what follows it is computed with it."""

    def __init__(self, inputs: int, outputs: int, dtype: str):
        self.weight = jt.zeros((outputs, inputs), dtype)
        self.bias = jt.zeros((outputs,))

    def execute(self, x):
        return matmul(x, self.weight)

    def activated(self, x, activation: str):
        """Compute an activation, one of kernels.ACTIVATIONS, of the product and the bias; its dtype is the weight's."""
        function, dtype = kernels.ACTIVATIONS[activation], str(self.weight.dtype)
        if _is_half(self.weight):
            return _multiply(x, self.weight, dtype, _activated(function.__name__), self.bias)
        return function(self(x), self.bias, dtype)

    def added(self, x, branch):
        """Add the product of a branch, and the bias, to the residual stream x."""
        if _is_half(self.weight):
            finish = "Added{in2_p, in3_p, out0_p, out0_shape1}"
            return _multiply(branch, self.weight, "float32", finish, x, self.bias)
        return kernels.residual(x, self(branch), self.bias)
