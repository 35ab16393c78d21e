"""Makes `import jittor` work on this machine, and chooses between CPU and CUDA.

Jittor reads its settings from environment variables when it is imported. `prepare` sets them when `jclip` is imported,
and `use` imports Jittor. If the caller imported Jittor before jclip, Jittor keeps the settings it has.

Any thread may import Jittor, and may end afterwards; two may do so at once.

Which device is used, and that Jittor has to compile itself, is logged at level INFO by the logger "jclip".
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

from . import compat, compiling, cuda, home, importing, jittor_cache
from .errors import ClipError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "half")
INSTALL = "pip install -r requirements.txt && pip install --no-deps -r requirements-jittor.txt"
PREPARED_BY = "JCLIP_PREPARED_BY"  # variable of a child process: the id of the process that has prepared it
HALF_CAPABILITY = 80  # 10 x compute capability from which tensor cores have the instructions that kernels.cuh uses
DEFAULTS = {
    "log_silent": "1",
    "FIX_TORCH_ERROR": "0",  # 1 imports an installed torch
    "use_mpi": "0",  # 1 builds MPI bindings wherever mpicc is on PATH
    "use_nccl": "0",  # 1 downloads NCCL
    # 16 threads share state without locks, and have crashed; without them the first run takes longer
    "use_parallel_op_compiler": "0",
}
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)
_lock = threading.RLock()  # held by the one thread that imports Jittor or chooses the device
_build_problem = ""  # why Jittor's core could not be compiled with CUDA, in this process
_log = logging.getLogger("jclip")


def prepare() -> None:
    """Set the environment variables with which Jittor can be imported on this machine.

    Variables that the user has set, such as `nvcc_path=/opt/cuda/bin/nvcc` or `use_mpi=1`, are left alone. Does nothing
    if Jittor is already imported, or in a child process that inherited the variables.
    """
    importing.install()
    is_child = multiprocessing.parent_process() and {"nvcc_path", "FIX_TORCH_ERROR"} <= os.environ.keys()
    if "jittor" in sys.modules or is_child or os.environ.get(PREPARED_BY) == str(os.getppid()):
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    nvcc = os.environ.get("nvcc_path")
    if nvcc == "" or ((nvcc is None or _is_generated(nvcc)) and cuda_problem()):
        _disable_cuda()
    elif not cuda_problem():
        for name, value in _cuda_setup()[0].items():
            os.environ.setdefault(name, value)


def _is_generated(nvcc: str) -> bool:
    """Return whether `nvcc` lies in a folder that `cuda.make` made; a child process inherits such a path."""
    return os.path.expanduser(cuda.CACHE) in map(str, Path(nvcc).parents)


def _disable_cuda() -> None:
    """Make Jittor compile for the CPU only; its import fails if nvcc is there but the CUDA runtime is not."""
    os.environ["nvcc_path"] = ""
    if os.environ.get("cache_name") == cuda.VARIABLES["cache_name"]:  # inherited from a process that uses CUDA
        del os.environ["cache_name"]


def cuda_problem() -> str:
    """Return why CUDA cannot be used on this machine and what to install, or "" if it can; does not import Jittor."""
    return _build_problem or _cuda_setup()[1]


@cache
def _cuda_setup() -> tuple[dict[str, str], str]:
    """Return the environment variables that Jittor needs for CUDA, and "" or the reason why there are none."""
    try:
        return cuda.environment(), ""
    except cuda.NoCuda as problem:
        return {}, str(problem)


def jittor():
    """Import Jittor and return the module.

    Raises
    ------
    ClipError
        If Jittor or a C++ compiler is not installed, Jittor's cache cannot be written, or the import fails.
    """
    with _lock:
        return _import_jittor()


@cache
def _import_jittor():
    advice = "import jclip before jittor"
    if "jittor" not in sys.modules:
        prepare()
        _check_installation()
        advice = f"delete {jittor_cache.folder()} and run: {INSTALL}"
        if _is_generated(os.environ.get("nvcc_path", "")):
            _check_jittor_starts(Path(os.environ["nvcc_path"]))
        if jittor_cache.fails_once():
            _import_in_child("")
    try:
        import jittor as jt  # as importing.py finds it; waits for a thread that is importing it
    except SystemExit:  # Jittor exits after it has rebuilt a part of itself
        sys.modules.pop("jittor", None)
        raise ClipError("Jittor has rebuilt its core for this machine; run the same command again") from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename and error.errno in NOT_WRITABLE:
            raise home.not_writable(error.filename, error) from None
        raise ClipError(f"Jittor cannot be imported: {_last_line(error)}") from error
    importing.undo_what_ends_the_process()  # again, because the caller may have imported Jittor before jclip
    compat.check_arrays(jt, advice)
    return jt


def _check_installation() -> None:
    """Raise ClipError if Jittor or a C++ compiler is missing."""
    if not importlib.util.find_spec("jittor"):
        raise ClipError(f"Jittor is not installed; run: {INSTALL}")
    if not compat.compiler():
        raise ClipError(
            "g++ is missing, with which Jittor compiles itself; install it (Debian, Ubuntu: apt install g++)"
        )


def _check_jittor_starts(nvcc: Path) -> None:
    """Import Jittor with CUDA in a child process, which compiles its core; disable CUDA if that fails.

    Jittor exits where CUDA fails, and once after it has compiled a part of itself, so it must not be this process.
    The result is kept in an empty or a log file beside the folder of `nvcc`, one for each version of the driver.
    """
    global _build_problem
    driver = "{}.{}".format(*cuda.first_gpu().driver)
    folder = nvcc.parents[1]
    started, failed = (folder.with_name(f"{folder.name}-{result}-{driver}") for result in ("started", "failed"))
    if failed.exists():
        _build_problem = (
            f"Jittor has not started with it before, {failed} says why; delete {folder.parent} to try again"
        )
        _disable_cuda()
        return
    if started.exists() and jittor_cache.has_core(str(nvcc)):
        return
    output = _import_in_child(str(nvcc))
    if output is None:
        _write_result(started, "")
        return
    _write_result(failed, output)
    _build_problem = f"Jittor does not start with it, {failed} says why; delete {folder.parent} to try again"
    _disable_cuda()


def _import_in_child(nvcc: str) -> str | None:
    """Import Jittor for `nvcc` in a child process; return None if it starts with CUDA, else what it printed."""
    project = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {project!r}); import jclip, jittor; print('has_cuda', jittor.has_cuda)"
    with compiling.shown(nvcc, jittor_cache.has_core(nvcc)):
        for _ in range(3):  # it may exit with code 0 after compiling a part of itself, and then has to be started again
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, PREPARED_BY: str(os.getpid())},
            )
            if done.returncode == 0 and "has_cuda 1" in done.stdout:
                return None
            if done.returncode:
                break
    return done.stdout


def _write_result(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError:
        pass  # a read-only cache that another user made; the next run repeats the check


def use(device: str = "auto", precision: str = "float32") -> str:
    """Import Jittor and make it compute on a device from now on.

    Each choice is logged once, at level INFO.

    Parameters
    ----------
    device : "auto", "cpu" or "cuda"
        "auto" takes CUDA where it works; other spellings of `device_name` are understood.
    precision : "float32" or "half"
        What the caller computes in; "half" is float16 on CUDA and bfloat16 on a CPU that multiplies such numbers.

    Returns
    -------
    "cpu" or "cuda"

    Raises
    ------
    ClipError
        If the device or precision is unknown or not available, or Jittor cannot be imported.
    """
    device = device_name(device)
    for name, value, choices in (("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if value not in choices:
            raise ClipError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")
    if device == "cuda":
        _require_cuda()
    if device == "cpu" and precision == "half":
        _check_cpu_half(device)
    with _lock:
        jt = jittor()
        if device == "cuda" and not jt.has_cuda:
            _require_cuda()
            raise ClipError(
                "--device cuda was asked for, but this Jittor was started without CUDA; "
                "unset nvcc_path or run with --device cpu"
            )
        chosen = "cuda" if device != "cpu" and jt.has_cuda else "cpu"
        if precision == "half":
            _check_cpu_half(device) if chosen == "cpu" else _check_cuda_half()
        jt.flags.use_cuda = int(chosen == "cuda")
        _log_device(chosen, device, precision)
        return chosen


def is_device(value) -> bool:
    """Return whether a value spells a device, existing or not, rather than a dtype."""
    return type(value) is int or str(value).partition(":")[0] in (*DEVICES, "gpu", "mps", "xpu")


def device_name(device) -> str:
    """Return "cpu" or "cuda" for the spellings of PyTorch: "cuda:0", 0, torch.device("cuda"); others are left.

    Raises ClipError for another GPU than the first, the only one that Jittor uses.
    """
    if device is None:
        return "auto"
    kind, _, index = str(f"cuda:{device}" if type(device) is int else device).partition(":")
    if kind == "cuda" and index not in ("", "0"):
        raise ClipError(
            f"device {kind}:{index}: only the first GPU is used; set the environment variable CUDA_VISIBLE_DEVICES="
            f"{index} before Python starts, and give cuda"
        )
    return kind if index in ("", "0") and kind in DEVICES else str(device)


def _require_cuda() -> None:
    if cuda_problem():
        raise ClipError(
            f"--device cuda was asked for, but CUDA cannot be used here: {cuda_problem()}; run with --device cpu"
        )


def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 numbers, by AVX512-BF16; those with AMX-BF16 have that as well."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False  # not Linux


def _check_cpu_half(requested: str) -> None:
    """Raise ClipError if this CPU has no half precision."""
    if has_bfloat16():
        return
    lacking = "--precision half needs CUDA or a CPU with AVX512-BF16, which this CPU lacks"
    if requested == "auto":
        lacking += f", and there is no CUDA: {_why_no_cuda()}"
    raise ClipError(f"{lacking}; run with --precision float32")


def _check_cuda_half() -> None:
    """Raise ClipError if the GPU's tensor cores are too old for half precision."""
    gpu = cuda.first_gpu()
    if gpu.capability < HALF_CAPABILITY:
        raise ClipError(
            f"--precision half needs a GPU of compute capability {HALF_CAPABILITY / 10}, {gpu.name} has "
            f"{gpu.capability / 10}; run with --precision float32"
        )


def _why_no_cuda() -> str:
    return cuda_problem() or "switched off by nvcc_path"


@cache
def _log_device(chosen: str, requested: str, precision: str) -> None:
    """Log the device; the cache makes it once for each choice."""
    jt = jittor()
    if chosen == "cuda":
        version = ".".join(map(str, jt.compiler.nvcc_version[:2]))
        where = f"{cuda.first_gpu().name} (CUDA {version}, {precision})"
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        where = f"the CPU ({cores} core{'s' * (cores != 1)}, {precision})"
        where += f"; no CUDA: {_why_no_cuda()}" if requested == "auto" else ""
    _log.info("Jittor %s computes on %s", jt.__version__, where)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
