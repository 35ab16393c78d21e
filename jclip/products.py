"""Matrix products, and layers that are made of one."""

from __future__ import annotations

import jittor as jt

from .module import Module

# Without AVX-512, oneDNN 2.2 computes the last rows of a small product by other code, which rounds differently. It does
# not do so if the number of rows is a multiple of ROW_MULTIPLE. A product counts as small if it has fewer than FEW_ROWS
# rows, or the matrix is narrower than NARROW.
ROW_MULTIPLE, FEW_ROWS, NARROW = 24, 640, 512


def matmul(x, matrix, transposed: bool = True):
    """Multiply x (n, ..., a) by the transpose of matrix (b, a), or by matrix (a, b) itself; the result is (n, ..., b).

    The product is computed in two dimensions, which oneDNN runs on all cores. Without gradients on the CPU, the bits of
    a row depend neither on its index nor on the other rows; zero rows are added if that needs them. (If n is 1, there
    is nothing to compare with, and none are added.)
    """
    rows, width = x.reshape(-1, x.shape[-1]), matrix.shape[0 if transposed else 1]
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


class Linear(Module):
    """A linear layer that multiplies only; the kernel after it adds the bias."""

    def __init__(self, inputs: int, outputs: int, dtype: str):
        self.weight = jt.zeros((outputs, inputs), dtype)
        self.bias = jt.zeros((outputs,))

    def execute(self, x):
        return matmul(x, self.weight)
