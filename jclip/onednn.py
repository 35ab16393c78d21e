"""C++ that calls oneDNN, which Jittor carries for its own products and convolutions on the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jittor as jt

from . import jittor_cache, kernels


def is_there() -> bool:
    """Return whether Jittor has oneDNN and its headers; a user may have switched it off."""
    return bool(jt.compile_extern.mkl_ops and _headers())


@cache
def _headers() -> Path | None:
    """Return the folder of the headers of Jittor's oneDNN."""
    return next(jittor_cache.folder().glob("mkl/dnnl*/include"), None)


def source(name: str) -> str:
    """Return C++ that includes a file of this folder; Jittor does not find the files that one of ours includes."""
    return f'{kernels.CPU_SOURCE}#include "{Path(__file__).with_name(name).resolve()}"\n'


def run(shape, dtype: str, source: str, code: str, *inputs):
    """Return the Var that C++ code fills; `kernels._run` says how."""
    out = jt.code(shape, dtype, list(inputs), cpu_header=source, cpu_src=code)
    out.compile_options = {f'FLAGS: -I"{_headers()}" ': 1}
    return out
