"""Finds the CUDA that is installed, and lays it out as Jittor expects it.

Jittor 1.3.11 needs bin/nvcc, include and lib64 in one folder, and its sources are older than CUDA 13. CUDA is installed
as a toolkit, as pip's nvidia-* packages, by Jittor's own download, or as a mixture. So `environment` makes a folder of
links to the installed files, adds a wrapper around nvcc and the few headers that CUDA 13 needs, and returns the
environment variables that point Jittor to the folder.
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

from . import compat, home
from .errors import ClipError
from .paths import expand

CACHE = Path("~/.cache/jclip/cuda")  # has a folder <hash of its content>/ for each CUDA
TOOLKITS = ("/usr/local/cuda", "/opt/cuda", "/usr/local/cuda-*", "/usr")  # patterns of the folders of toolkits
SYSTEM = Path("/usr")  # the distribution's own package; compilers find its headers without help
# major version of CUDA with which Jittor compiles -> 10 x the lowest compute capability that it supports
SUPPORTED = {11: 35, 12: 50, 13: 75}
# oldest version of the driver -> the CUDA that Jittor's install_cuda.py downloads for it
JITTOR_DOWNLOADS = {
    (12, 2): "cuda12.2_cudnn8_linux",
    (11, 2): "cuda11.2_cudnn8_linux",
    (11, 0): "cuda11.0_cudnn8_linux",
}
# What Jittor needs, and the pip package of CUDA 13 that has it
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
# Linked if installed: nvcc links with cudadevrt, and Jittor with the others if the user sets conv_opt=0.
OPTIONAL_HEADERS = ("npp.h", "cufft.h", "cusparse.h", "cudnn.h")
OPTIONAL_LIBRARIES = ("cudadevrt", "cufft", "cusparse", "nvJitLink", "cudnn*")
# conv_opt=1: Jittor uses cuBLAS and cuRAND, but not cuDNN, which only nn.Conv needs.
# use_cutlass=0, use_cutt=0: jclip needs neither, and Jittor would download both when it is imported. Without cuTT,
# Jittor transposes on the CPU.
# cache_name: Jittor's core for CUDA lies in a folder below that for the CPU, and with one name for both, Jittor imports
# the core for the CPU.
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
# The CUB and Thrust of CUDA 13 need C++17; Jittor asks for C++14.
CASE_STANDARD = '\n  -std=c++14) set -- "$@" -std=c++17 ;;'
# Jittor asks for machine code only, and for none newer than sm_90. From PTX, the driver compiles for a newer GPU.
# Untested on a real Blackwell GPU; only the output of nvcc with these flags was checked.
CASE_PTX = '\n  -arch=compute_*) set -- "$@" "$argument" "-code=${argument#-arch=}" ;;'
# What compat.py gives to g++ 15, as nvcc spells it. Untested with g++ 15 and a GPU.
CASES_GCC15 = """
  -includecstdint) set -- "$@" -include cstdint ;;
  -Wno-template-body) set -- "$@" -Xcompiler "$argument" ;;"""

# Functions of Jittor's helper_cuda.h read fields of cudaDeviceProp that CUDA 13 has removed; nothing calls them.
# If the user sets use_cutt=1, cuTT uses the two clock rates (kHz) to estimate which of its kernels is fastest.
RUNTIME_HEADER = """#pragma once
#include "{folder}/cuda_runtime.h"
#include <cuda.h>
#define computeMode integrated
#define clockRate warpSize * 55000
#define memoryClockRate warpSize * 40000
"""

# Names that Jittor's operators use, and that CUB 3 has removed in favour of Thrust and libcu++.
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

# Jittor includes npp.h only for these limits of integers. pip's packages and small toolkits have no NPP.
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

# A replacement for python3-config with the two options that Jittor uses.
PYTHON_CONFIG = """#!/bin/sh
case $1 in
--includes) echo {includes} ;;
--extension-suffix) echo {suffix} ;;
esac
"""


class NoCuda(ClipError):
    """CUDA cannot be used on this machine; the message says why and what to install."""


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver lists, which is the one that Jittor computes on.

    Attributes
    ----------
    name : str, e.g. "NVIDIA H100 80GB HBM3"
    capability : int, 10 x compute capability, e.g. 90
    driver : (int, int), the newest CUDA version that the driver supports, e.g. (13, 0)
    """

    name: str
    capability: int
    driver: tuple[int, int]


@dataclass(frozen=True)
class Toolkit:
    """An installed CUDA.

    Attributes
    ----------
    nvcc : Path, the program itself, not a link or wrapper
    version : tuple of int, e.g. (13, 0, 88)
    includes : tuple of Path, the folders of the headers; a header is taken from the first folder that has it
    libraries : tuple of Path, the library files
    missing : dict of str to str, from each missing header or library to the pip package (of CUDA 13) that has it
    """

    nvcc: Path
    version: tuple[int, ...]
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    missing: dict[str, str]


def first_gpu() -> Gpu:
    """Ask the driver for its first GPU.

    Raises NoCuda if there is no driver or no GPU.
    """
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
    """Prepare the installed CUDA for Jittor and return the environment variables that Jittor needs to use it.

    If the user has set `nvcc_path`, Jittor uses that CUDA as it is, and no folder is made.

    Returns
    -------
    dict of str to str
        To be set before Jittor is imported.

    Raises
    ------
    NoCuda
        If the driver, the GPU, nvcc, a header or a library is missing, or their versions do not fit together.
    """
    gpu, users_nvcc = first_gpu(), os.environ.get("nvcc_path")
    if users_nvcc:
        _check_users_nvcc(users_nvcc, gpu)
        return dict(VARIABLES)
    folder = make(find(gpu), gpu)
    variables = {"nvcc_path": str(folder / "bin/nvcc"), **VARIABLES}
    if (folder / "bin/python3-config").exists():
        variables["python_config_path"] = str(folder / "bin/python3-config")
    return variables


def find(gpu: Gpu) -> Toolkit:
    """Return the first complete CUDA on this machine that the driver and the GPU can use.

    Raises NoCuda if there is none; the message is about the first CUDA that was found.
    """
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
    """Return the toolkit of `nvcc`: its version, and the headers and libraries that fit it.

    They are looked for beside nvcc, in pip's packages and in the system's folders, in this order. Raises NoCuda if nvcc
    does not run.
    """
    version, nvcc = nvcc_version(nvcc), _resolve_wrapper(nvcc)
    roots = list(_search_roots(nvcc.parent.parent, version[0]))
    folders = [root / name for root in roots for name in ("include/cccl", "include")]
    includes = {
        header: next((folder for folder in folders if (folder / header).is_file()), None)
        for header in (*HEADERS, *OPTIONAL_HEADERS)
    }
    libraries = {name: _library_files(name, roots, version[0]) for name in (*LIBRARIES, *OPTIONAL_LIBRARIES)}
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
    """Make the folder that Jittor needs, with bin, include and lib64, and return its path.

    The folder's name is the hash of its content, so a changed CUDA gets a folder of its own, and an existing folder is
    complete and can be used. Raises NoCuda if the folder cannot be written.
    """
    files = _folder_content(toolkit, gpu)
    key = hashlib.sha256(repr(sorted((name, str(value)) for name, value in files.items())).encode()).hexdigest()[:16]
    try:
        folder = expand(CACHE) / key
    except ClipError as error:
        raise NoCuda(str(error)) from None
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=folder.parent) as temporary:
            _write(Path(temporary, key), files)
            try:
                os.rename(Path(temporary, key), folder)
            except OSError:
                if not folder.is_dir():  # if it is, another process has just made the same folder
                    raise
    except OSError as error:
        raise NoCuda(str(home.not_writable(folder, error))) from None
    return folder


def nvcc_version(nvcc: Path | str) -> tuple[int, ...]:
    """Return the version that nvcc prints, e.g. (13, 0, 88); raise NoCuda if it does not run or prints none."""
    output = _output(nvcc, "--version")
    version = re.search(r"\bV(\d+\.\d+\.\d+)", output) or re.search(r"release (\d+\.\d+)", output)
    if not version:
        raise NoCuda(f"{nvcc} does not say of which CUDA it is")
    return tuple(map(int, version[1].split(".")))


def _output(nvcc: Path | str, *arguments: str) -> str:
    """Run nvcc and return what it prints on stdout and stderr; raise NoCuda if it does not run."""
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


def _resolve_wrapper(nvcc: Path) -> Path:
    """Return the program behind `nvcc`, which may be a link or a script that calls it.

    A dry run prints the folder of the program as _HERE_.
    """
    here = re.search(
        r"^#\$ _HERE_=(.+)$", _output(nvcc, "--dryrun", "-x", "cu", "/dev/null", "-o", "/dev/null"), re.MULTILINE
    )
    program = Path(here[1].strip(), "nvcc") if here else nvcc
    return (program if program.is_file() else nvcc).resolve()


def _nvccs(gpu: Gpu) -> Iterator[Path]:
    """Yield every nvcc of the machine in the order in which they are tried.

    Jittor's own, if it has downloaded one; else that on PATH, of CUDA_HOME and CUDA_PATH, of TOOLKITS (newest version
    first) and of pip's packages.
    """
    own = _jittors_own_nvcc(gpu)
    if own:
        yield own
        return
    on_path = shutil.which("nvcc")
    programs = [Path(on_path)] if on_path else []
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for pattern in TOOLKITS:
        versions = sorted(Path("/").glob(pattern[1:]), key=lambda home: [int(n) for n in re.findall(r"\d+", home.name)])
        homes += reversed(versions)
    for packages in _pip_folders():
        homes += [*sorted(packages.glob("cu[0-9]*")), packages / "cuda_nvcc"]
    programs += [home / "bin/nvcc" for home in homes]
    yield from dict.fromkeys(program for program in programs if program.is_file())


def _jittors_own_nvcc(gpu: Gpu) -> Path | None:
    """Return nvcc of the CUDA that Jittor has downloaded, or None; if there is one, Jittor uses no other.

    Raises NoCuda if Jittor has downloaded another version than this driver needs: it would download that when it is
    imported.
    """
    folder = Path.home() / ".cache/jittor/jtcuda"
    name = next((name for oldest_driver, name in JITTOR_DOWNLOADS.items() if gpu.driver >= oldest_driver), None)
    if not folder.is_dir() or not name:
        return None
    nvcc = folder / name / "bin/nvcc"
    if not nvcc.is_file():
        raise NoCuda(f"no {nvcc}, which Jittor would download; run: python -m jittor_utils.install_cuda")
    return nvcc


def _pip_folders() -> list[Path]:
    """Return the folders named nvidia that pip's packages share, after those that the variable CUDA_PACKAGES lists.

    CUDA_PACKAGES is separated like PATH.
    """
    packages = os.environ.get("CUDA_PACKAGES", "").split(os.pathsep)
    # not `expand`, whose errors would end `import jclip`
    listed = [Path(os.path.expanduser(folder)) for folder in packages if folder]
    folders = dict.fromkeys([*listed, *(Path(path, "nvidia") for path in sys.path)])
    return [folder for folder in folders if folder.is_dir()]


def _search_roots(home: Path, major: int) -> Iterator[Path]:
    """Yield the folders that may have headers in include, and libraries in lib64 or lib, for CUDA `major`."""
    yield from sorted(home.glob(f"targets/{'x86_64' if platform.machine() == 'x86_64' else '*'}-linux"))
    yield home
    for folder in _pip_folders():
        if major >= 13:
            yield folder / f"cu{major}"
        else:  # each package has a folder of its own
            yield from sorted(child for child in folder.iterdir() if not re.fullmatch(r"cu\d+", child.name))
    yield SYSTEM


def _library_files(name: str, roots: list[Path], major: int) -> list[Path]:
    """Return lib<name>.so, lib<name>.so.<version> and lib<name>.a of the first root that has them for CUDA `major`."""
    for root in roots:
        for folder in (root / "lib64", root / "lib", root / f"lib/{platform.machine()}-linux-gnu"):
            files = sorted([*folder.glob(f"lib{name}.so*"), *folder.glob(f"lib{name}.a")])
            versions = {file.name.split(".so.")[1].split(".")[0] for file in files if ".so." in file.name}
            # these carry the version of CUDA, other libraries have versions of their own
            if name in ("cudart", "cublas", "cublasLt") and versions and str(major) not in versions:
                continue
            if files:
                return files
    return []


def _check_version(version: tuple[int, ...], gpu: Gpu) -> None:
    """Raise NoCuda if Jittor, the driver or the GPU cannot use this version of CUDA."""
    release = ".".join(map(str, version[:2]))
    if version[0] not in SUPPORTED:
        raise NoCuda(f"nvcc is of CUDA {release}, Jittor needs {', '.join(map(str, SUPPORTED))}")
    # A driver runs machine code of any toolkit of its major version, but compiles PTX of no newer toolkit than itself.
    oldest_driver = version[:2] if _needs_ptx(version, gpu) else (version[0], 0)
    if gpu.driver < oldest_driver:
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
    """Raise NoCuda if headers or libraries are missing."""
    if toolkit.missing:
        suffix = "" if toolkit.version[0] >= 13 else f"-cu{toolkit.version[0]}"
        packages = " ".join(dict.fromkeys(package + suffix for package in toolkit.missing.values()))
        raise NoCuda(f"nvcc at {toolkit.nvcc}, but no {', '.join(toolkit.missing)}; run: pip install {packages}")


def _check_users_nvcc(nvcc: str, gpu: Gpu) -> None:
    """Raise NoCuda if Jittor would not start with the user's nvcc; it takes only the libraries beside it."""
    _jittors_own_nvcc(gpu)
    version = nvcc_version(nvcc)
    _check_version(version, gpu)
    path = Path(shutil.which(nvcc) or nvcc)
    lib64 = Path("/usr/lib/x86_64-linux-gnu") if nvcc == "/usr/bin/nvcc" else path.resolve().parent.parent / "lib64"
    if not (lib64 / "libcudart.so").exists():
        raise NoCuda(f"nvcc at {nvcc}, but no {lib64}/libcudart.so")
    with open(path, "rb") as file:
        is_script = file.read(2) == b"#!"  # it may be a wrapper like NVCC
    if version[0] >= 13 and not is_script:
        raise NoCuda(
            f"nvcc_path is {nvcc}, of CUDA {version[0]}, which Jittor cannot use as it is; "
            "unset nvcc_path, and what it needs is made"
        )


def _needs_ptx(version: tuple[int, ...], gpu: Gpu) -> bool:
    """Return whether the GPU is of a newer generation than any machine code that Jittor asks this nvcc for."""
    newest = 90 if version >= (11, 8) else 86 if version >= (11, 1) else 80
    return gpu.capability // 10 > newest // 10


def _folder_content(toolkit: Toolkit, gpu: Gpu) -> dict[str, Path | str]:
    """Return the files of the folder for Jittor by name: a Path is the target of a link, a str the text of a file."""
    is_13 = toolkit.version[0] >= 13
    cases = (CASE_STANDARD if is_13 else "") + (CASE_PTX if _needs_ptx(toolkit.version, gpu) else "")
    cases += CASES_GCC15 if compat.gcc_flags() else ""
    files: dict[str, Path | str] = {
        "bin/nvcc": NVCC.format(nvcc=shlex.quote(str(toolkit.nvcc)), cases=cases),
        "made_from": f"nvcc {'.'.join(map(str, toolkit.version))}\nsm_{gpu.capability}\n",
    }
    if not _has_python_config():
        paths = sysconfig.get_paths()
        files["bin/python3-config"] = PYTHON_CONFIG.format(
            includes=shlex.quote(f"-I{paths['include']} -I{paths['platinclude']}"),
            suffix=shlex.quote(sysconfig.get_config_var("EXT_SUFFIX")),
        )
    files.update(_headers(toolkit, is_13))
    for file in reversed(toolkit.libraries):
        files[f"lib64/{file.name}"] = file.resolve()
        if ".so." in file.name:  # Jittor and nvcc link with names without a version, which pip's packages lack
            files.setdefault(f"lib64/{file.name.split('.so.')[0]}.so", file.resolve())
    return files


def _headers(toolkit: Toolkit, is_13: bool) -> dict[str, Path | str]:
    """Return the part of `_folder_content` below include/, with the changes that CUDA 13 needs."""
    files: dict[str, Path | str] = {}
    for folder in reversed(toolkit.includes):  # the first folder overwrites the others
        if folder != SYSTEM / "include":
            files.update({f"include/{entry.name}": entry for entry in folder.iterdir()})
    if is_13:
        runtime, cub = (
            next(folder for folder in toolkit.includes if (folder / header).is_file())
            for header in ("cuda_runtime.h", "cub/cub.cuh")
        )
        files["include/cuda_runtime.h"] = RUNTIME_HEADER.format(folder=runtime)
        files.pop("include/cub", None)
        files.update({f"include/cub/{entry.name}": entry for entry in (cub / "cub").iterdir()})
        files["include/cub/cub.cuh"] = CUB_HEADER.format(folder=cub)
    if not any((folder / "npp.h").is_file() for folder in toolkit.includes):
        files["include/npp.h"] = NPP_HEADER
    return files


def _write(folder: Path, files: dict[str, Path | str]) -> None:
    """Write what `_folder_content` returned; files in bin are executable."""
    for name, value in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, Path):
            file.symlink_to(value)
        else:
            file.write_text(value, encoding="utf-8")
            if name.startswith("bin/"):
                file.chmod(0o755)


def _has_python_config() -> bool:
    """Return whether python3-config is in one of the places where Jittor looks for it."""
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
