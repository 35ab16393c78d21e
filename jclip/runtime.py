"""Makes `import jittor` work on the machine at hand, and chooses between CPU and CUDA.

Jittor decides what it compiles from the environment at its import, so `prepare` runs when `jclip` is imported, and
`use` imports Jittor itself. Whoever imports Jittor first has decided; `prepare` then leaves all as it is.
"""
from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

from .errors import ClipError

DEVICES = ("auto", "cpu", "cuda")
# Jittor 1.3.11 compiles against CUDA 11 and 12 only.
SUPPORTED_CUDA = (11, 12)
# What its install_cuda.py brings, by the least version of the driver, 1000 times major plus 10 times minor.
JITTORS_CUDA = {12020: "cuda12.2_cudnn8_linux", 11020: "cuda11.2_cudnn8_linux", 11000: "cuda11.0_cudnn8_linux"}


def prepare() -> None:
    """Set the environment that lets Jittor import here; does nothing once Jittor is imported.

    A variable that the user has set is left alone, so `nvcc_path=/opt/cuda/bin/nvcc` or `use_mpi=1` still work.
    """
    if "jittor" in sys.modules:
        return
    os.environ.setdefault("log_silent", "1")
    os.environ.setdefault("FIX_TORCH_ERROR", "0")  # else Jittor imports an installed torch
    os.environ.setdefault("use_mpi", "0")  # else it builds MPI bindings wherever mpicc is on PATH
    os.environ.setdefault("use_nccl", "0")  # else it downloads nccl
    os.environ.setdefault("use_parallel_op_compiler", "0")  # else 16 threads share state without locks, which once crashed; costs time on the first run
    if "nvcc_path" not in os.environ and cuda_problem():
        os.environ["nvcc_path"] = ""  # a build for the CPU; an nvcc without a runtime breaks the import


@lru_cache(maxsize=None)
def cuda_problem() -> str:
    """Why CUDA cannot be used on this machine; empty where it can.

    Looks at what Jittor needs, without loading Jittor: a driver with a GPU, nvcc of CUDA 11 or 12, libcudart.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver finds no GPU"
    own = _jittors_nvcc(driver)
    nvcc = os.environ.get("nvcc_path") or own or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin:/opt/cuda/bin")
    if not nvcc:
        return "no nvcc"
    if own and not os.path.isfile(nvcc):
        return f"no {nvcc}, which Jittor would download; run: python -m jittor_utils.install_cuda"
    try:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{nvcc} does not run ({error})"
    release = re.search(r"release (\d+)", version)
    if not release or int(release[1]) not in SUPPORTED_CUDA:
        found = release[1] if release else "an unknown release"
        return f"nvcc is of CUDA {found}, Jittor needs {' or '.join(map(str, SUPPORTED_CUDA))}"
    library = _libcudart(nvcc)
    return "" if library.exists() else f"nvcc at {nvcc}, but no {library}"


def _jittors_nvcc(driver: ctypes.CDLL) -> str | None:
    """That of the CUDA which `python -m jittor_utils.install_cuda` brings, by the driver's version; where Jittor has brought any, it takes no other."""
    folder, version = Path.home() / ".cache/jittor/jtcuda", ctypes.c_int()
    if not folder.is_dir() or driver.cuDriverGetVersion(ctypes.byref(version)):
        return None
    name = next((name for least, name in JITTORS_CUDA.items() if version.value >= least), None)
    return str(folder / name / "bin/nvcc") if name else None


def _libcudart(nvcc: str) -> Path:
    """Where Jittor 1.3.11 loads it from; it looks nowhere else, and without it does not start at all."""
    if nvcc == "/usr/bin/nvcc":  # a distribution's package
        return Path("/usr/lib/x86_64-linux-gnu/libcudart.so")
    return Path(nvcc).resolve().parent.parent / "lib64/libcudart.so"


@lru_cache(maxsize=None)
def jittor():
    """Import Jittor, prepared; the module. Raises ClipError where it cannot be imported."""
    if "jittor" in sys.modules:
        _give_back_signals()
        return sys.modules["jittor"]
    prepare()
    if not importlib.util.find_spec("jittor"):
        raise ClipError("Jittor is not installed; run: pip install -r requirements.txt")
    if not (os.environ.get("cc_path") or shutil.which("g++") or shutil.which("clang++")):
        raise ClipError("g++ is missing, with which Jittor compiles itself; install it (Debian, Ubuntu: apt install g++)")
    # one folder each for the versions of Jittor, g++, Python, the kernel, the CPU, the install path, and the cache's name
    if not any(Path.home().glob(".cache/jittor/*/*/*/*/*/*/*/jittor_core*.so")):
        print("Jittor compiles its core on its first use: about 3 minutes, once.", file=sys.stderr)
    np.finfo(np.float32), np.finfo(np.float64)  # asked now, once: later they would warn that Jittor computes with denormal numbers as zero
    try:
        import jittor as jt
    except SystemExit:  # its own way of saying that it rebuilt a part of itself
        sys.modules.pop("jittor", None)
        raise ClipError("Jittor has rebuilt its core for this machine; run the same command again") from None
    except Exception as error:
        raise ClipError(f"Jittor cannot be imported: {_last_line(error)}") from error
    _give_back_signals()
    return jt


def use(device: str = "auto") -> str:
    """Import Jittor and compute on `device` from now on; says on stderr, once for each choice, what was chosen.

    Parameters
    ----------
    device : "auto", "cpu" or "cuda"; auto takes CUDA where it works.

    Returns
    -------
    "cpu" or "cuda". Raises ClipError for an unknown device and for "cuda" where CUDA cannot be used.
    """
    if device not in DEVICES:
        raise ClipError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}")
    if device == "cuda" and cuda_problem():
        raise ClipError(f"--device cuda was asked for, but CUDA cannot be used here: {cuda_problem()}; run with --device cpu")
    jt = jittor()
    if device == "cuda" and not jt.has_cuda:
        raise ClipError("--device cuda was asked for, but this Jittor was started without CUDA; unset nvcc_path or run with --device cpu")
    chosen = "cuda" if device != "cpu" and jt.has_cuda else "cpu"
    jt.flags.use_cuda = int(chosen == "cuda")
    _announce(chosen, device)
    return chosen


@lru_cache(maxsize=None)
def _announce(chosen: str, asked: str) -> None:
    why = f"; no CUDA: {cuda_problem() or 'switched off by nvcc_path'}" if chosen == "cpu" and asked == "auto" else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = "CUDA" if chosen == "cuda" else f"the CPU ({cores} core{'s' * (cores != 1)})"
    print(f"Jittor {jittor().__version__} computes on {where}{why}", file=sys.stderr)


def _give_back_signals() -> None:
    """Undo Jittor's signal handlers: they end the process on Ctrl-C, and when any child is killed. Python still knows those before."""
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
