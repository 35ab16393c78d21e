"""Makes `import jittor` work on the machine at hand, and chooses between CPU and CUDA.

Jittor decides what it compiles from the environment at its import, so `prepare` runs when `jclip` is imported, and
`use` imports Jittor itself. Whoever imports Jittor first has decided; `prepare` then leaves all as it is.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from . import cuda
from .errors import ClipError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "half")
HALF_CAPABILITY = 80  # compute capability, times 10, from which on tensor cores do what kernels.cuh asks of them
_build_problem = ""  # why Jittor's core could not be compiled with CUDA, in this process


def prepare() -> None:
    """Set the environment that lets Jittor import here; does nothing once Jittor is imported.

    A variable that the user has set is left alone, so `nvcc_path=/opt/cuda/bin/nvcc` or `use_mpi=1` still work.
    """
    inherited = (
        multiprocessing.parent_process() and {"nvcc_path", "FIX_TORCH_ERROR"} <= os.environ.keys()
    )  # as readers have it
    if "jittor" in sys.modules or inherited:
        return
    os.environ.setdefault("log_silent", "1")
    os.environ.setdefault("FIX_TORCH_ERROR", "0")  # else Jittor imports an installed torch
    os.environ.setdefault("use_mpi", "0")  # else it builds MPI bindings wherever mpicc is on PATH
    os.environ.setdefault("use_nccl", "0")  # else it downloads nccl
    # else 16 threads share state without locks, which once crashed; costs time on the first run
    os.environ.setdefault("use_parallel_op_compiler", "0")
    nvcc = os.environ.get("nvcc_path")
    if nvcc == "" or ((nvcc is None or _is_ours(nvcc)) and cuda_problem()):
        _switch_cuda_off()
    elif not cuda_problem():
        for name, value in _cuda()[0].items():
            os.environ.setdefault(name, value)


def _is_ours(nvcc: str) -> bool:
    """Whether it is not the user's; a process may get it from the one that has started it."""
    return cuda.CACHE.expanduser() in Path(nvcc).parents


def _switch_cuda_off() -> None:
    """Let Jittor be built for the CPU; an nvcc without a runtime breaks its import."""
    os.environ["nvcc_path"] = ""
    if os.environ.get("cache_name") == cuda.VARIABLES["cache_name"]:  # of a process with CUDA that has started this one
        del os.environ["cache_name"]


def cuda_problem() -> str:
    """Why CUDA cannot be used on this machine, and what to install; empty where it can. Does not load Jittor."""
    return _build_problem or _cuda()[1]


@cache
def _cuda() -> tuple[dict[str, str], str]:
    """The variables that Jittor needs for CUDA, and why there are none."""
    try:
        return cuda.environment(), ""
    except cuda.NoCuda as problem:
        return {}, str(problem)


@cache
def jittor():
    """Import Jittor, prepared; the module. Raises ClipError where it cannot be imported."""
    if "jittor" in sys.modules:
        _give_back_signals()
        return sys.modules["jittor"]
    prepare()
    if not importlib.util.find_spec("jittor"):
        raise ClipError("Jittor is not installed; run: pip install -r requirements.txt")
    if not (os.environ.get("cc_path") or shutil.which("g++") or shutil.which("clang++")):
        raise ClipError(
            "g++ is missing, with which Jittor compiles itself; install it (Debian, Ubuntu: apt install g++)"
        )
    if _is_ours(os.environ.get("nvcc_path", "")):
        _try_cuda(Path(os.environ["nvcc_path"]))
    _announce_compilation(os.environ.get("nvcc_path", ""))
    (
        np.finfo(np.float32),
        np.finfo(np.float64),
    )  # asked now, once: later they would warn that Jittor computes with denormal numbers as zero
    try:
        import jittor as jt
    except SystemExit:  # its own way of saying that it rebuilt a part of itself
        sys.modules.pop("jittor", None)
        raise ClipError("Jittor has rebuilt its core for this machine; run the same command again") from None
    except Exception as error:
        raise ClipError(f"Jittor cannot be imported: {_last_line(error)}") from error
    _give_back_signals()
    return jt


def _announce_compilation(nvcc: str) -> bool:
    """Whether Jittor's core is compiled for this `nvcc`; says that it will take a while where it is not."""
    is_compiled = _core_is_compiled(nvcc)
    if not is_compiled:
        minutes = "up to 10" if nvcc else "about 3"  # on 2 cores; for CUDA 1 on 16
        print(f"Jittor compiles its core on its first use: {minutes} minutes, once.", file=sys.stderr)
    return is_compiled


def _try_cuda(nvcc: Path) -> None:
    """Start Jittor with CUDA in a process of its own, which compiles its core; where that fails, go on without CUDA.

    Jittor ends its process where CUDA fails, and where it must start anew after it has compiled a part of itself. What
    came of it is kept beside the folder that was made for this CUDA, by the version of the driver.
    """
    global _build_problem
    of_driver = "{}.{}".format(*cuda.first_gpu().driver)
    has_started, has_failed = (
        nvcc.parents[2] / f"{nvcc.parents[1].name}-{what}-{of_driver}" for what in ("started", "failed")
    )
    if has_failed.exists():
        _build_problem = (
            f"Jittor has not started with it before, {has_failed} says why; delete {nvcc.parents[2]} to try again"
        )
        _switch_cuda_off()
        return
    if _announce_compilation(str(nvcc)) and has_started.exists():
        return
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", "import jittor; print('has_cuda', jittor.has_cuda)"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode == 0 and "has_cuda 1" in done.stdout:
            _keep(has_started, "")
            return
        if done.returncode:
            break
    _keep(has_failed, done.stdout)
    _build_problem = f"Jittor does not start with it, {has_failed} says why; delete {nvcc.parents[2]} to try again"
    _switch_cuda_off()


def _keep(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError:
        pass  # a folder that was made for others to read; what is not kept is tried again


def use(device: str = "auto", precision: str = "float32") -> str:
    """Import Jittor and compute on `device` from now on; says on stderr, once for each choice, what was chosen.

    Parameters
    ----------
    device : "auto", "cpu" or "cuda"
        auto takes CUDA where it works.
    precision : "float32" or "half"
        What the caller computes in; half needs CUDA.

    Returns
    -------
    "cpu" or "cuda"

    Raises
    ------
    ClipError
        For an unknown device or precision, and for "cuda" or "half" where CUDA cannot be used.
    """
    for name, value, known in (("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ClipError(f"unknown {name} {value!r}; expected one of {', '.join(known)}")
    if device == "cuda":
        _check_cuda()
    if device == "cpu" and precision == "half":
        raise ClipError("--precision half needs CUDA; run with --precision float32")
    jt = jittor()
    if device == "cuda" and not jt.has_cuda:
        _check_cuda()
        raise ClipError(
            "--device cuda was asked for, but this Jittor was started without CUDA; "
            "unset nvcc_path or run with --device cpu"
        )
    if precision == "half" and not jt.has_cuda:
        raise ClipError(
            f"--precision half needs CUDA, and there is none: {_why_no_cuda()}; run with --precision float32"
        )
    chosen = "cuda" if device != "cpu" and jt.has_cuda else "cpu"
    if precision == "half" and cuda.first_gpu().capability < HALF_CAPABILITY:
        raise ClipError(
            f"--precision half needs a GPU of compute capability {HALF_CAPABILITY / 10}, {cuda.first_gpu().name} has "
            f"{cuda.first_gpu().capability / 10}; run with --precision float32"
        )
    jt.flags.use_cuda = int(chosen == "cuda")
    _announce(chosen, device, precision)
    return chosen


def _check_cuda() -> None:
    if cuda_problem():
        raise ClipError(
            f"--device cuda was asked for, but CUDA cannot be used here: {cuda_problem()}; run with --device cpu"
        )


def _why_no_cuda() -> str:
    return cuda_problem() or "switched off by nvcc_path"


@cache
def _announce(chosen: str, asked: str, precision: str) -> None:
    jt = jittor()
    if chosen == "cuda":
        where = f"{cuda.first_gpu().name} (CUDA {'.'.join(map(str, jt.compiler.nvcc_version[:2]))}, {precision})"
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        where = f"the CPU ({cores} core{'s' * (cores != 1)})"
        where += f"; no CUDA: {_why_no_cuda()}" if asked == "auto" else ""
    print(f"Jittor {jt.__version__} computes on {where}", file=sys.stderr)


def _core_is_compiled(nvcc: str) -> bool:
    """Whether Jittor has its core for this `nvcc`; empty: for the CPU.

    Its cache has a folder each for the versions of Jittor, g++, Python, the kernel, the CPU, the install path, and the
    cache's name (several, where a git branch's name has slashes); with CUDA one more, such as cu13.0.88_sm_90.
    Beside the core lies the command that linked it, which names the folder of CUDA.
    """
    folder = Path(shutil.which(nvcc) or nvcc).parent.parent
    for depth in range(7, 11):
        for command in Path.home().glob(".cache/jittor/" + "*/" * depth + "jittor_core*.so.key"):
            text = command.read_text(errors="replace")
            if f'"{folder}/lib64"' in text if nvcc else "-DHAS_CUDA" not in text:
                return True
    return False


def _give_back_signals() -> None:
    """Undo Jittor's signal handlers: they end the process on Ctrl-C, and when any child is killed. Python still knows
    those before."""
    try:
        for name, default in (("SIGINT", signal.default_int_handler), ("SIGCHLD", signal.SIG_DFL)):
            if hasattr(signal, name):  # Windows has no SIGCHLD
                number = getattr(signal, name)
                before = signal.getsignal(number)
                signal.signal(number, default if before is None else before)
    except ValueError:
        pass  # signals belong to the main thread; imported in another, Jittor's handlers stay


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
