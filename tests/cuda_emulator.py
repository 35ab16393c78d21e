"""Runs the CUDA kernels of this project on the CPU: the numbers are those of a GPU, the speed is not.

The source that jclip/kernels.py and fewshot/cache_logits.py pass to Jittor is compiled by g++ with cuda_on_cpu.h
instead of by nvcc. Launches are replaced by calls, and cuBLAS by a loop.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COMPILER = ["g++", "-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-fPIC"]
TYPES = {"float32": "float", "float16": "__half", "uint8": "uint8_t", "int32": "int"}
LAUNCH = re.compile(r"([\w:]+(?:<\w+>)?)<<<([^;]*?), (\w+)>>>(\([^;]*\));")
PRELUDE = """#include "cuda_on_cpu.h"
#include <cstdint>
namespace clip {
inline void check() {}
template <class T> void product(const T* x, const T* matrix, T* out, int64_t m, int k, int n) {
    for (int64_t row = 0; row < m; row++)
        for (int column = 0; column < n; column++) {
            float sum = 0;
            for (int i = 0; i < k; i++) sum += float(x[row * k + i]) * float(matrix[column * k + i]);
            out[row * n + column] = T(sum);
        }
}
}
"""


class Emulator:
    """Compiles each source once, into a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        subprocess.run(
            [*COMPILER, "-x", "c++-header", HERE / "cuda_on_cpu.h", "-o", folder / "cuda_on_cpu.h.gch"], check=True
        )

    def run(
        self, shapes: Sequence, dtypes: Sequence[str], header: str, source: str, inputs: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Return what `jt.code(shapes, dtypes, inputs, cuda_header=header, cuda_src=source)` computes.

        It is computed twice, with threads and blocks in ascending and in descending order, and the bits must be the
        same; they may differ if a barrier is missing.
        """
        ins = [np.ascontiguousarray(x) for x in inputs]
        # filled with 97, so that an element that is never written is noticed
        both = [[np.full(shape, 97, dtype) for shape, dtype in zip(shapes, dtypes)] for _ in range(2)]
        run = self._compiled(
            header, source, [(x.ndim, str(x.dtype)) for x in ins], [(x.ndim, str(x.dtype)) for x in both[0]]
        )
        sizes = np.array([size for x in [*ins, *both[0]] for size in x.shape], np.int64)
        for backwards, outs in enumerate(both):
            pointers = (ctypes.c_void_p * len(ins + outs))(*(x.ctypes.data for x in ins + outs))
            run(pointers, sizes.ctypes.data_as(ctypes.c_void_p), ctypes.c_bool(bool(backwards)))
        for forwards, backwards in zip(*both):
            np.testing.assert_array_equal(forwards, backwards)
        return both[0]

    def _compiled(self, header: str, source: str, ins: list, outs: list):
        code = f"""{PRELUDE}{self._with_calls(header)}
extern "C" void run(void** pointers, const int64_t* sizes, bool backwards) {{
    cuda_on_cpu::backwards = backwards;
    {self._variables(ins, outs)}
    {calls(source)}
}}
"""
        path = self.folder / f"{hashlib.sha256(code.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            path.with_suffix(".cpp").write_text(code)
            subprocess.run([*COMPILER, "-shared", "-I", self.folder, path.with_suffix(".cpp"), "-o", path], check=True)
        return ctypes.CDLL(str(path)).run

    def _with_calls(self, header: str) -> str:
        """Return the content of the included files with launches replaced by calls."""
        files = re.findall(r'#include "(.*?)"', header)
        return "".join(calls(Path(file).read_text().replace("#pragma once", "")) for file in files)

    def _variables(self, ins: list, outs: list) -> str:
        """Return the definitions that Jittor puts before a source: in0_p, in0->num, in0_shape0 …"""
        names, lines, at = [*(f"in{i}" for i in range(len(ins))), *(f"out{i}" for i in range(len(outs)))], [], 0
        for number, (name, (dims, dtype)) in enumerate(zip(names, ins + outs)):
            lines.append(f"auto {name}_p = ({TYPES[dtype]}*)pointers[{number}];")
            lines += [f"const int64_t {name}_shape{i} = sizes[{at + i}];" for i in range(dims)]
            count = " * ".join(["(int64_t)1", *(f"sizes[{at + i}]" for i in range(dims))])
            lines.append(f"struct {{ int64_t num; }} {name}_var{{{count}}}, *{name} = &{name}_var;")
            at += dims
        return "\n    ".join(lines)


def calls(source: str) -> str:
    """Replace each launch, kernel<<<grid, block>>>(arguments);, by a call of the emulator."""
    return LAUNCH.sub(r"cuda_on_cpu::launch(dim3(\2), dim3(\3), 0, [&] { \1\4; });", source)
