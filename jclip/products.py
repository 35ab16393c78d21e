"""Matrix products, and layers that are made of one.

Products with a bfloat16 matrix are those of the CPU's half precision: oneDNN computes them, called by products.h, and
their results and sums are float32. They have no gradients; where these are wanted, the matrix is used as float32.
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from . import kernels, onednn
from .errors import ClipError
from .module import Module

SOURCE = onednn.source("products.h")
PACKED = {"bfloat16": "clip::Bfloat16"}  # dtypes of the matrices that are packed -> their types in products.h
BLOCK = 64  # oneDNN pads the sides of a matrix to multiples of up to this

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
    if str(matrix.dtype) in PACKED and jt.flags.no_grad and not jt.flags.use_cuda:
        return packed_product(rows, matrix, transposed).reshape(*x.shape[:-1], width)
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


def packed_product(rows, matrix, transposed: bool):
    """Compute `matmul` of rows (n, a) by oneDNN, whose layout of the matrix is kept with it until it changes.

    The bits of a row depend neither on its index nor on the other rows. The result is float32.
    """
    dtype, width = str(matrix.dtype), matrix.shape[0 if transposed else 1]
    rows = kernels.bfloat16(rows) if dtype == "bfloat16" else rows.float32()
    product = f"clip::Product<{PACKED[dtype]}>(out0_shape1, in0_shape1)"
    call = f"{product}.run(in0_p, in1_p, out0_p, out0_shape0);"
    return onednn.run((rows.shape[0], width), "float32", SOURCE, call, rows, _packed(matrix, transposed))


def _packed(matrix, transposed: bool):
    """Return a matrix in oneDNN's layout; Jittor gives a Var whose value is replaced another id."""
    made_from, packed = getattr(matrix, "packed", (None, None))
    if made_from != (matrix.id, transposed):
        dtype = str(matrix.dtype)
        outputs = "in0_shape0" if transposed else "in0_shape1"
        product = f"clip::Product<{PACKED[dtype]}>({outputs}, in0->num / {outputs})"
        call = f"{product}.pack(in0_p, {int(not transposed)}, out0_p, out0->size);"
        width = matrix.shape[0 if transposed else 1]
        size = _padded(width) * _padded(int(np.prod(matrix.shape)) // width)
        packed = onednn.run((size,), dtype, SOURCE, call, matrix)
        matrix.packed = (matrix.id, transposed), packed
    return packed


def _padded(side: int) -> int:
    return -(-side // BLOCK) * BLOCK


def check_bfloat16() -> None:
    """Raise ClipError if bfloat16 products cannot be computed here; Jittor would find out at the first result."""
    advice = "run with --precision float32"
    if not onednn.is_there():
        raise ClipError(f"--precision half needs oneDNN on the CPU, and Jittor is without it; {advice}")
    x, matrix = (np.arange(n * 100).reshape(n, 100) % 13 - 6 for n in (70, 80))  # with sums that are exact
    try:
        with jt.no_grad():
            product = matmul(jt.array(x.astype(np.float32)), kernels.bfloat16(jt.array(matrix.astype(np.float32))))
            found, problem = product.numpy(), None
    except RuntimeError as error:
        found, problem = None, error
    if not np.array_equal(found, x @ matrix.T):
        message = f"--precision half: Jittor's oneDNN cannot compute bfloat16 products on this CPU; {advice}"
        raise ClipError(message) from problem


class Linear(Module):
    """A linear layer that multiplies only; the kernel after it adds the bias."""

    def __init__(self, inputs: int, outputs: int, dtype: str):
        self.weight = jt.zeros((outputs, inputs), dtype)
        self.bias = jt.zeros((outputs,))

    def execute(self, x):
        return matmul(x, self.weight)
