"""Finds the CUDA that is installed, and lays it out as Jittor expects it.

Jittor 1.3.11 wants bin/nvcc, include and lib64 in one folder, and sources of before CUDA 13. CUDA comes as a toolkit,
as pip's nvidia-* packages, as what Jittor downloads, or as a mixture. So `environment` makes a folder of links to what
is there, with a wrapper around nvcc and the few headers that CUDA 13 needs, and names the variables that point Jittor
to it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import ClipError

CACHE = Path("~/.cache/jclip/cuda")  # <key>/: the folders made here
TOOLKITS = ("/usr/local/cuda", "/opt/cuda", "/usr/local/cuda-*", "/usr")  # where toolkits are installed
SYSTEM = Path("/usr")  # a distribution's own package; compilers find its headers by themselves
# CUDA's major versions that Jittor compiles with, and the least compute capability, times 10, of each
SUPPORTED = {11: 35, 12: 50, 13: 75}
# What Jittor's install_cuda.py downloads, by the least version of the driver
JITTORS = {(12, 2): "cuda12.2_cudnn8_linux", (11, 2): "cuda11.2_cudnn8_linux", (11, 0): "cuda11.0_cudnn8_linux"}
# What Jittor needs, and the package of CUDA 13 that brings it with pip
HEADERS = {
    "cuda_runtime.h": "nvidia-cuda-runtime",
    "cub/cub.cuh": "nvidia-cuda-cccl",
    "cublas_v2.h": "nvidia-cublas",
    "curand.h": "nvidia-curand",
}
LIBRARIES = {
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "cublasLt": "nvidia-cublas",
    "curand": "nvidia-curand",
}
# Linked where they are there: nvcc links with cudadevrt, Jittor with the others for a user who sets conv_opt=0.
OPTIONAL_HEADERS = ("npp.h", "cufft.h", "cusparse.h", "cudnn.h")
OPTIONAL_LIBRARIES = ("cudadevrt", "cufft", "cusparse", "nvJitLink", "cudnn*")
# conv_opt: cuBLAS and cuRAND alone, without cuDNN, which only nn.Conv uses. use_cutlass and use_cutt: nothing here
# needs them, and both are downloaded at the import; without cuTT Jittor transposes on the CPU.
# cache_name: Jittor keeps its core for CUDA in a folder below that for the CPU, and would import the latter from there.
VARIABLES = {"conv_opt": "1", "use_cutlass": "0", "use_cutt": "0", "cache_name": "jclip_cuda"}

NVCC = """#!/bin/sh
for argument; do
  shift
  case $argument in{cases}
  *) set -- "$@" "$argument" ;;
  esac
done
exec {nvcc} "$@"
"""
# CUDA 13's CUB and Thrust need C++17; Jittor asks for C++14.
CASE_STANDARD = '\n  -std=c++14) set -- "$@" -std=c++17 ;;'
# Jittor asks for machine code alone, and of no newer architecture than sm_90. With PTX beside it the driver compiles
# for a newer GPU. Untested on a real Blackwell: only what nvcc makes of the flags was looked at.
CASE_PTX = '\n  -arch=compute_*) set -- "$@" "$argument" "-code=${argument#-arch=}" ;;'

# Jittor's helper_cuda.h reads the fields of cudaDeviceProp that CUDA 13 took away, in functions that nothing calls.
# cuTT, for a user who sets use_cutt=1, estimates with the clocks (kHz) which of its kernels is the fastest.
RUNTIME_HEADER = """#pragma once
#include "{folder}/cuda_runtime.h"
#include <cuda.h>
#define computeMode integrated
#define clockRate warpSize * 55000
#define memoryClockRate warpSize * 40000
"""

# Jittor's operators name what CUB 3 has removed in favour of Thrust and libcu++.
CUB_HEADER = """#pragma once
#include "{folder}/cub/cub.cuh"
#if CCCL_MAJOR_VERSION >= 3
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
namespace cub {{
#define JCLIP_OPERATOR(Name, result) struct Name {{ \\
    template <class T> __host__ __device__ T operator()(const T& a, const T& b) const {{ return result; }} }};
JCLIP_OPERATOR(Sum, a + b)
JCLIP_OPERATOR(Max, a < b ? b : a)
JCLIP_OPERATOR(Min, b < a ? b : a)
#undef JCLIP_OPERATOR
template <class T, class Offset = ptrdiff_t>
using CountingInputIterator = thrust::counting_iterator<T>;
template <class T, class Op, class Input, class Offset = ptrdiff_t>
using TransformInputIterator = thrust::transform_iterator<Op, Input, T>;
inline __device__ unsigned LaneId() {{ unsigned lane; asm("mov.u32 %0, %%laneid;" : "=r"(lane)); return lane; }}
}}
#endif
"""

# All that Jittor uses of NPP, which pip packages and small toolkits lack: the limits of integers.
NPP_HEADER = """#pragma once
#include <climits>
#define NPP_MIN_32U 0
#define NPP_MAX_32U UINT_MAX
#define NPP_MIN_32S INT_MIN
#define NPP_MAX_32S INT_MAX
#define NPP_MIN_64U 0
#define NPP_MAX_64U ULLONG_MAX
#define NPP_MIN_64S LLONG_MIN
#define NPP_MAX_64S LLONG_MAX
"""

# Stands in for python3-config: the two questions that Jittor asks it.
PYTHON_CONFIG = """#!/bin/sh
case $1 in
--includes) echo {includes} ;;
--extension-suffix) echo {suffix} ;;
esac
"""


class NoCuda(ClipError):
    """CUDA cannot be used here; the message says why, and what to install."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows; the one that Jittor computes on.

    Attributes
    ----------
    name : str, e.g. "NVIDIA H100 80GB HBM3"
    capability : int, compute capability times 10, e.g. 90
    driver : (int, int), the newest CUDA that the driver supports, e.g. (13, 0)
    """

    name: str
    capability: int
    driver: tuple[int, int]


@dataclass(frozen=True)
class Toolkit:
    """An installed CUDA.

    Attributes
    ----------
    nvcc : Path, the program itself, behind links and wrappers
    version : tuple of int, e.g. (13, 0, 88)
    includes : tuple of Path, the folders of the headers in the order of their precedence
    libraries : tuple of Path, the files
    missing : dict of str to str, each header or library that is not there, and pip's package (of CUDA 13) that has it
    """

    nvcc: Path
    version: tuple[int, ...]
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    missing: dict[str, str]


def first_gpu() -> Gpu:
    """Ask the driver for the GPU; raises NoCuda where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise NoCuda("no NVIDIA driver") from None
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoCuda(
            "the NVIDIA driver finds no GPU" + (f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else "")
        )
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name, major, minor = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(
        name.value.decode(errors="replace"),
        10 * major.value + minor.value,
        (version.value // 1000, version.value % 1000 // 10),
    )


def environment() -> dict[str, str]:
    """Make the folder for Jittor, unless it is there; the variables that let Jittor compute on the GPU.

    With `nvcc_path` set, Jittor uses that CUDA as it is, and nothing is made.

    Returns
    -------
    dict of str to str, to be set before Jittor is imported

    Raises
    ------
    NoCuda
        Where the driver, the GPU, nvcc, a header or a library is missing, or they do not go together.
    """
    gpu, given = first_gpu(), os.environ.get("nvcc_path")
    if given:
        _check_given(given, gpu)
        return dict(VARIABLES)
    folder = make(find(gpu), gpu)
    variables = {"nvcc_path": str(folder / "bin/nvcc"), **VARIABLES}
    if (folder / "bin/python3-config").exists():
        variables["python_config_path"] = str(folder / "bin/python3-config")
    return variables


def find(gpu: Gpu) -> Toolkit:
    """Find the first complete CUDA that the driver and the GPU can use; raises NoCuda where there is none."""
    problems = []
    for nvcc in _nvccs(gpu):
        try:
            toolkit = examine(nvcc)
            _check_version(toolkit.version, gpu)
            _check_complete(toolkit)
            return toolkit
        except NoCuda as problem:
            problems.append(problem)
    if problems:
        raise problems[0]
    pip = " or run: pip install nvidia-cuda-nvcc " + " ".join(dict.fromkeys(HEADERS.values()))
    raise NoCuda(f"no nvcc; install the CUDA toolkit {gpu.driver[0]}{pip if gpu.driver[0] >= 13 else ''}")


def examine(nvcc: Path) -> Toolkit:
    """Gather what goes with `nvcc`: beside it, of pip, of the system; raises NoCuda where it does not run."""
    version, nvcc = nvcc_version(nvcc), _behind_wrappers(nvcc)
    roots = list(_roots(nvcc.parent.parent, version[0]))
    folders = [root / name for root in roots for name in ("include/cccl", "include")]
    includes = {
        header: next((folder for folder in folders if (folder / header).is_file()), None)
        for header in (*HEADERS, *OPTIONAL_HEADERS)
    }
    libraries = {name: _library(name, roots, version[0]) for name in (*LIBRARIES, *OPTIONAL_LIBRARIES)}
    missing = {header: package for header, package in HEADERS.items() if not includes[header]}
    missing.update({f"lib{name}.so": package for name, package in LIBRARIES.items() if not libraries[name]})
    return Toolkit(
        nvcc,
        version,
        tuple(dict.fromkeys(folder for folder in includes.values() if folder)),
        tuple(file for files in libraries.values() for file in files),
        missing,
    )


def make(toolkit: Toolkit, gpu: Gpu) -> Path:
    """Make the folder that Jittor needs, whole or not at all, unless it is there: bin, include and lib64.

    Its name is the hash of its content, so that it is made anew when anything that it was made from has changed.
    """
    content = _content(toolkit, gpu)
    key = hashlib.sha256(repr(sorted((name, str(value)) for name, value in content.items())).encode()).hexdigest()[:16]
    folder = CACHE.expanduser() / key
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=folder.parent) as temporary:
            _write(Path(temporary, key), content)
            try:
                os.rename(Path(temporary, key), folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same content
                    raise
    except OSError as error:
        raise NoCuda(f"cannot write {folder} ({error.strerror or error})") from None
    return folder


def nvcc_version(nvcc: Path | str) -> tuple[int, ...]:
    """The version that nvcc says it has, e.g. (13, 0, 88); raises NoCuda where it does not run or says none."""
    output = _output(nvcc, "--version")
    found = re.search(r"\bV(\d+\.\d+\.\d+)", output) or re.search(r"release (\d+\.\d+)", output)
    if not found:
        raise NoCuda(f"{nvcc} does not say of which CUDA it is")
    return tuple(map(int, found[1].split(".")))


def _output(nvcc: Path | str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [nvcc, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCuda(f"{nvcc} does not run ({error})") from None
    return done.stdout


def _behind_wrappers(nvcc: Path) -> Path:
    """The program itself: nvcc on PATH may be a link, or a script that calls it. It tells where it lies."""
    here = re.search(
        r"^#\$ _HERE_=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "/dev/null", "-o", "/dev/null"), re.MULTILINE
    )
    itself = Path(here[1].strip(), "nvcc") if here else nvcc
    return (itself if itself.is_file() else nvcc).resolve()


def _nvccs(gpu: Gpu) -> Iterator[Path]:
    """Every nvcc to be considered, the preferred ones first."""
    own = _jittors(gpu)
    if own:
        yield own
        return
    programs = [Path(found) for found in [shutil.which("nvcc")] if found]
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in TOOLKITS:
        versions = sorted(Path("/").glob(place[1:]), key=lambda home: [int(n) for n in re.findall(r"\d+", home.name)])
        homes += reversed(versions)
    homes += [home for place in _packages() for home in (*sorted(place.glob("cu[0-9]*")), place / "cuda_nvcc")]
    programs += [home / "bin/nvcc" for home in homes]
    yield from dict.fromkeys(program for program in programs if program.is_file())


def _jittors(gpu: Gpu) -> Path | None:
    """nvcc of the CUDA that Jittor has downloaded; where it has downloaded any, it takes no other.

    Raises NoCuda where this driver needs another one than is there: Jittor would download it at its import.
    """
    folder = Path.home() / ".cache/jittor/jtcuda"
    name = next((name for least, name in JITTORS.items() if gpu.driver >= least), None)
    if not folder.is_dir() or not name:
        return None
    nvcc = folder / name / "bin/nvcc"
    if not nvcc.is_file():
        raise NoCuda(f"no {nvcc}, which Jittor would download; run: python -m jittor_utils.install_cuda")
    return nvcc


def _packages() -> list[Path]:
    """The folders named nvidia of pip's packages, and those that the variable CUDA_PACKAGES lists as PATH does."""
    given = [Path(place) for place in os.environ.get("CUDA_PACKAGES", "").split(os.pathsep) if place]
    return [place for place in dict.fromkeys([*given, *(Path(path, "nvidia") for path in sys.path)]) if place.is_dir()]


def _roots(home: Path, major: int) -> Iterator[Path]:
    """Where headers and libraries may lie, as include and lib64 or lib: with nvcc, in pip's packages, in the system."""
    yield from sorted(home.glob(f"targets/{'x86_64' if platform.machine() == 'x86_64' else '*'}-linux"))
    yield home
    for place in _packages():  # up to CUDA 12 a folder for each package
        children = sorted(child for child in place.iterdir() if not re.fullmatch(r"cu\d+", child.name))
        yield from [place / f"cu{major}"] if major >= 13 else children
    yield SYSTEM


def _library(name: str, roots: list[Path], major: int) -> list[Path]:
    """The files of a library, of the first root that has it for this CUDA: lib<name>.so, .so.<version>, .a."""
    for root in roots:
        for folder in (root / "lib64", root / "lib", root / f"lib/{platform.machine()}-linux-gnu"):
            files = sorted([*folder.glob(f"lib{name}.so*"), *folder.glob(f"lib{name}.a")])
            versions = {file.name.split(".so.")[1].split(".")[0] for file in files if ".so." in file.name}
            if name in ("cudart", "cublas", "cublasLt") and versions and str(major) not in versions:
                continue  # of another CUDA; cuRAND's numbers are its own
            if files:
                return files
    return []


def _check_version(version: tuple[int, ...], gpu: Gpu) -> None:
    release = ".".join(map(str, version[:2]))
    if version[0] not in SUPPORTED:
        raise NoCuda(f"nvcc is of CUDA {release}, Jittor needs {', '.join(map(str, SUPPORTED))}")
    # Within a major version an older driver runs what a newer toolkit has compiled; but PTX it must compile itself.
    least = version[:2] if _needs_ptx(version, gpu) else (version[0], 0)
    if gpu.driver < least:
        driver = ".".join(map(str, gpu.driver))
        raise NoCuda(
            f"the NVIDIA driver supports CUDA up to {driver}, nvcc is of CUDA {release}; "
            f"install a newer driver or the CUDA toolkit {driver}"
        )
    if gpu.capability < SUPPORTED[version[0]]:
        raise NoCuda(
            f"CUDA {release} has no more support for {gpu.name} (compute capability {gpu.capability / 10}); "
            + (
                f"install the CUDA toolkit {version[0] - 1}"
                if version[0] - 1 in SUPPORTED
                else "Jittor has no CUDA for it"
            )
        )


def _check_complete(toolkit: Toolkit) -> None:
    if toolkit.missing:
        suffix = "" if toolkit.version[0] >= 13 else f"-cu{toolkit.version[0]}"
        packages = " ".join(dict.fromkeys(package + suffix for package in toolkit.missing.values()))
        raise NoCuda(f"nvcc at {toolkit.nvcc}, but no {', '.join(toolkit.missing)}; run: pip install {packages}")


def _check_given(nvcc: str, gpu: Gpu) -> None:
    """Raise NoCuda where Jittor would not start with the user's nvcc: it takes only what lies beside it."""
    _jittors(gpu)
    version = nvcc_version(nvcc)
    _check_version(version, gpu)
    path = Path(shutil.which(nvcc) or nvcc)
    lib64 = Path("/usr/lib/x86_64-linux-gnu") if nvcc == "/usr/bin/nvcc" else path.resolve().parent.parent / "lib64"
    if not (lib64 / "libcudart.so").exists():
        raise NoCuda(f"nvcc at {nvcc}, but no {lib64}/libcudart.so")
    with open(path, "rb") as file:
        is_script = file.read(2) == b"#!"  # such a wrapper as is made here, perhaps
    if version[0] >= 13 and not is_script:
        raise NoCuda(
            f"nvcc_path is {nvcc}, of CUDA {version[0]}, which Jittor cannot use as it is; "
            "unset nvcc_path, and what it needs is made"
        )


def _needs_ptx(version: tuple[int, ...], gpu: Gpu) -> bool:
    """Whether the GPU is of a later generation than the machine code that Jittor asks this nvcc for."""
    newest = 90 if version >= (11, 8) else 86 if version >= (11, 1) else 80
    return gpu.capability // 10 > newest // 10


def _content(toolkit: Toolkit, gpu: Gpu) -> dict[str, Path | str]:
    """What the folder holds: a path is a link's target, a string a file's text."""
    modern = toolkit.version[0] >= 13
    cases = (CASE_STANDARD if modern else "") + (CASE_PTX if _needs_ptx(toolkit.version, gpu) else "")
    content: dict[str, Path | str] = {
        "bin/nvcc": NVCC.format(nvcc=shlex.quote(str(toolkit.nvcc)), cases=cases),
        "made_from": f"nvcc {'.'.join(map(str, toolkit.version))}\nsm_{gpu.capability}\n",
    }
    if not _has_python_config():
        paths = sysconfig.get_paths()
        content["bin/python3-config"] = PYTHON_CONFIG.format(
            includes=shlex.quote(f"-I{paths['include']} -I{paths['platinclude']}"),
            suffix=shlex.quote(sysconfig.get_config_var("EXT_SUFFIX")),
        )
    for folder in reversed(toolkit.includes):  # the first has the last word
        if folder != SYSTEM / "include":
            content.update({f"include/{entry.name}": entry for entry in folder.iterdir()})
    if modern:
        runtime, cub = (
            next(folder for folder in toolkit.includes if (folder / header).is_file())
            for header in ("cuda_runtime.h", "cub/cub.cuh")
        )
        content["include/cuda_runtime.h"] = RUNTIME_HEADER.format(folder=runtime)
        content.pop("include/cub", None)
        content.update({f"include/cub/{entry.name}": entry for entry in (cub / "cub").iterdir()})
        content["include/cub/cub.cuh"] = CUB_HEADER.format(folder=cub)
    if not any((folder / "npp.h").is_file() for folder in toolkit.includes):
        content["include/npp.h"] = NPP_HEADER
    for file in reversed(toolkit.libraries):
        content[f"lib64/{file.name}"] = file.resolve()
        if ".so." in file.name:  # pip's packages have no names without a version, with which Jittor and nvcc link
            content.setdefault(f"lib64/{file.name.split('.so.')[0]}.so", file.resolve())
    return content


def _write(folder: Path, content: dict[str, Path | str]) -> None:
    for name, value in content.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, Path):
            file.symlink_to(value)
        else:
            file.write_text(value, encoding="utf-8")
            if name.startswith("bin/"):
                file.chmod(0o755)


def _has_python_config() -> bool:
    """Whether Jittor finds a python3-config where it looks for it."""
    version = f"python3.{sys.version_info.minor}-config"
    beside = Path(sys.executable).parent
    return any(
        path.is_file()
        for path in (
            beside / version,
            Path(f"{sys.executable}-config"),
            Path("/usr/bin", version),
            Path("/usr/local/bin", version),
            beside / "python3-config",
        )
    )
