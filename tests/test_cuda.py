"""CUDA is found wherever it is installed, and laid out for Jittor; most of the installations are simulated."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT

from jclip import compat, cuda

H100 = cuda.Gpu("NVIDIA H100 80GB HBM3", 90, (13, 0))
RELEASES = {11: "11.8.89", 12: "12.4.131", 13: "13.0.88"}
HEADERS = ("cuda_runtime.h", "cuda.h", "cub/cub.cuh", "cub/block/block_reduce.cuh", "cublas_v2.h", "curand.h")
LIBRARIES = ("libcudart.so", "libcublas.so", "libcublasLt.so", "libcurand.so")


class Driver:
    """libcuda of a machine with one GPU."""

    def __init__(self, version=13000, capability=90, count=1):
        self.version, self.count, self.attributes = version, count, {75: capability // 10, 76: capability % 10}

    def cuInit(self, _):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0

    def cuDeviceGet(self, device, _):
        return 0

    def cuDeviceGetName(self, name, length, device):
        name.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.attributes[attribute]
        return 0


@pytest.fixture(autouse=True)
def bare(tmp_path, monkeypatch):
    """A machine without any CUDA, whose home is empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin" if not Path("/usr/bin/nvcc").exists() else "/bin")
    for name in ("nvcc_path", "CUDA_HOME", "CUDA_PATH", "CUDA_PACKAGES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cuda, "TOOLKITS", ())
    monkeypatch.setattr(cuda, "SYSTEM", tmp_path / "usr")
    monkeypatch.setattr(
        sys, "path", [str(tmp_path / "site"), *(folder for folder in sys.path if not Path(folder, "nvidia").is_dir())]
    )
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver())


def nvcc(path: Path, major: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"#!/bin/sh\necho 'release {RELEASES[major].rpartition('.')[0]}, V{RELEASES[major]}'\nprintf '%s\\n' \"$@\"\n"
    )
    path.chmod(0o755)
    return path


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def toolkit(home: Path, major: int, pip: bool = False) -> Path:
    """Make a complete toolkit, or pip's packages (whose libraries have a version in their names); return its nvcc."""
    include = home / "include"
    files(include, *(f"cccl/{name}" if major >= 13 and name.startswith("cub/") else name for name in HEADERS))
    for name in LIBRARIES:
        version = 10 if "curand" in name else major
        files(home / ("lib" if pip else "lib64"), f"{name}.{version}")
        if not pip:
            (home / "lib64" / name).symlink_to(f"{name}.{version}")
    return nvcc(home / "bin/nvcc", major)


def made(gpu: cuda.Gpu = H100) -> Path:
    return cuda.make(cuda.find(gpu), gpu)


def problem(gpu: cuda.Gpu = H100) -> str:
    with pytest.raises(cuda.NoCuda) as raised:
        cuda.find(gpu)
    return str(raised.value)


def passed_on(folder: Path, *arguments: str) -> list[str]:
    """Return the arguments that the wrapper in `folder` passes to nvcc."""
    return subprocess.run(
        [folder / "bin/nvcc", *arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]


def check_complete(folder: Path) -> None:
    for name in HEADERS:
        assert (folder / "include" / name).is_file(), name
    for name in LIBRARIES:
        version = max((folder / "lib64").glob(f"{name}.*"))
        assert (folder / "lib64" / name).is_file() and (folder / "lib64" / name).resolve() == version.resolve()


@pytest.mark.parametrize("major", RELEASES)
def test_a_toolkit(tmp_path, monkeypatch, major):
    program = toolkit(tmp_path / "cuda", major)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    result = cuda.find(H100)
    assert (result.nvcc, result.version, result.missing) == (program, tuple(map(int, RELEASES[major].split("."))), {})
    check_complete(made())


@pytest.mark.parametrize("where", ["/cuda", "/cuda-*"])
def test_a_toolkit_that_is_not_on_the_path(tmp_path, monkeypatch, where):
    for name in ("cuda", "cuda-13.0", "cuda-9.9"):
        toolkit(tmp_path / name, 13)
    monkeypatch.setattr(cuda, "TOOLKITS", (f"{tmp_path}{where}",))
    assert cuda.find(H100).nvcc == tmp_path / {"/cuda": "cuda", "/cuda-*": "cuda-13.0"}[where] / "bin/nvcc"


def test_the_next_nvcc_is_used_if_the_first_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{nvcc(tmp_path / 'bin/nvcc', 12).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", 13).parent.parent))
    assert cuda.find(H100).version == (13, 0, 88)


def test_a_script_is_resolved_to_the_program_it_calls(tmp_path, monkeypatch):
    program = toolkit(tmp_path / "cuda", 13)
    program.write_text(program.read_text() + f"[ $1 != --dryrun ] || echo '#$ _HERE_={program.parent}'\n")
    script = nvcc(tmp_path / "bin/nvcc", 13)
    script.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    assert cuda.find(H100).nvcc == program and cuda.find(H100).missing == {}


@pytest.mark.parametrize("folder", ["site/nvidia", "elsewhere"])
def test_pips_packages_of_cuda_13(tmp_path, monkeypatch, folder):
    program = toolkit(tmp_path / folder / "cu13", 13, pip=True)
    monkeypatch.setenv("CUDA_PACKAGES", str(tmp_path / "elsewhere"))
    assert cuda.find(H100).nvcc == program
    check_complete(made())


def test_nvcc_of_a_toolkit_and_the_rest_of_pip(tmp_path, monkeypatch):
    home = toolkit(tmp_path / "cuda", 13).parent.parent
    monkeypatch.setenv("CUDA_HOME", str(home))
    for file in [*home.rglob("*cublas*"), *home.rglob("*curand*")]:
        file.unlink()
    assert problem() == (
        f"nvcc at {home}/bin/nvcc, but no cublas_v2.h, curand.h, libcublas.so, libcublasLt.so, libcurand.so; "
        "run: pip install nvidia-cublas nvidia-curand"
    )
    packages = tmp_path / "site/nvidia"
    files(packages / "cublas", "include/cublas_v2.h", "lib/libcublas.so.12", "lib/libcublasLt.so.12")  # of CUDA 12
    assert "libcublas.so" in problem()
    toolkit(packages / "cu13", 13, pip=True)
    (packages / "cu13/bin/nvcc").unlink()
    check_complete(made())
    assert (made() / "lib64/libcublas.so").resolve() == packages / "cu13/lib/libcublas.so.13"


@pytest.mark.parametrize("major", [11, 12])
def test_pips_packages_up_to_cuda_12_have_a_folder_each(tmp_path, monkeypatch, major):
    monkeypatch.setenv("CUDA_HOME", str(nvcc(tmp_path / "cuda/bin/nvcc", major).parent.parent))
    assert problem().endswith(
        " ".join(
            ["run: pip install"]
            + [f"nvidia-{name}-cu{major}" for name in ("cuda-runtime", "cuda-cccl", "cublas", "curand")]
        )
    )
    packages = tmp_path / "site/nvidia"
    for package, names in (
        ("cuda_runtime", ("cuda_runtime.h", "cuda.h")),
        ("cuda_cccl", ("cub/cub.cuh", "cub/block/block_reduce.cuh")),
        ("cublas", ("cublas_v2.h",)),
        ("curand", ("curand.h",)),
    ):
        files(packages / package / "include", *names)
    files(
        packages,
        f"cuda_runtime/lib/libcudart.so.{major}{'.0' * (major == 11)}",
        f"cublas/lib/libcublas.so.{major}",
        f"cublas/lib/libcublasLt.so.{major}",
        "curand/lib/libcurand.so.10",
    )
    toolkit(packages / "cu13", 13, pip=True)  # another CUDA, whose files are left alone
    folder = made()
    check_complete(folder)
    assert not [link for link in folder.rglob("*") if "cu13" in str(link.resolve())]


def test_a_distributions_package(tmp_path, monkeypatch):
    """Its headers lie among all others, which stay where the compilers look for them."""
    program = toolkit(tmp_path / "usr", 12)
    files(tmp_path / "usr/include", "stdio.h")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    folder = made()
    assert [path.name for path in (folder / "include").iterdir()] == ["npp.h"]
    assert (folder / "lib64/libcublas.so").is_file()


@pytest.mark.parametrize("driver, name", [((12, 4), "cuda12.2_cudnn8_linux"), ((11, 8), "cuda11.2_cudnn8_linux")])
def test_the_cuda_that_jittor_has_downloaded(tmp_path, monkeypatch, driver, name):
    """If Jittor has downloaded any, it uses no other."""
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", 11).parent.parent))
    gpu = cuda.Gpu("A100", 80, driver)
    assert cuda.find(gpu).nvcc == tmp_path / "cuda/bin/nvcc"
    own = tmp_path / "home/.cache/jittor/jtcuda" / name
    (own.parent / "cuda11.0_cudnn8_linux").mkdir(parents=True)  # of an older driver
    assert problem(gpu) == f"no {own}/bin/nvcc, which Jittor would download; run: python -m jittor_utils.install_cuda"
    toolkit(own, driver[0])
    assert cuda.find(gpu).nvcc == own / "bin/nvcc"


@pytest.mark.parametrize(
    "piece, package",
    [
        ("include/cuda_runtime.h", "nvidia-cuda-runtime"),
        ("lib64/libcudart.so", "nvidia-cuda-runtime"),
        ("include/cccl/cub/cub.cuh", "nvidia-cuda-cccl"),
        ("include/cublas_v2.h", "nvidia-cublas"),
        ("lib64/libcublas.so", "nvidia-cublas"),
        ("lib64/libcublasLt.so", "nvidia-cublas"),
        ("include/curand.h", "nvidia-curand"),
        ("lib64/libcurand.so", "nvidia-curand"),
    ],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, piece, package):
    home = toolkit(tmp_path / "cuda", 13).parent.parent
    monkeypatch.setenv("CUDA_HOME", str(home))
    for file in (home / piece).parent.glob(f"{Path(piece).name}*"):
        file.unlink()
    name = piece.partition("/")[2].replace("cccl/", "")
    assert problem() == f"nvcc at {home}/bin/nvcc, but no {name}; run: pip install {package}"


@pytest.mark.parametrize(
    "driver, message",
    [
        (
            (13, 0),
            "no nvcc; install the CUDA toolkit 13 or run: pip install nvidia-cuda-nvcc nvidia-cuda-runtime "
            "nvidia-cuda-cccl "
            "nvidia-cublas nvidia-curand",
        ),
        ((12, 4), "no nvcc; install the CUDA toolkit 12"),  # pip's packages of CUDA 12 have no nvcc
    ],
)
def test_no_nvcc(driver, message):
    assert problem(cuda.Gpu("A100", 80, driver)) == message


@pytest.mark.parametrize(
    "output, message",
    [
        ("", "does not say of which CUDA it is"),
        ("V10.2.89", "nvcc is of CUDA 10.2, Jittor needs 11, 12, 13"),
        ("release 14.0, V14.0.1", "nvcc is of CUDA 14.0, Jittor needs 11, 12, 13"),
    ],
)
def test_another_nvcc(tmp_path, monkeypatch, output, message):
    program = toolkit(tmp_path / "cuda", 13)
    program.write_text(f"#!/bin/sh\necho {output!r}\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert message in problem()
    program.chmod(0o644)
    assert "does not run" in problem()


@pytest.mark.parametrize(
    "major, driver, capability, message",
    [
        (
            13,
            (12, 8),
            90,
            "the NVIDIA driver supports CUDA up to 12.8, nvcc is of CUDA 13.0; install a newer driver or the CUDA "
            "toolkit 12.8",
        ),
        (12, (12, 2), 90, ""),  # within a major version an older driver is enough
        (12, (12, 2), 100, "the NVIDIA driver supports CUDA up to 12.2"),  # but it does not compile newer PTX
        (13, (13, 0), 100, ""),
        (
            13,
            (13, 0),
            70,
            "CUDA 13.0 has no more support for A GPU (compute capability 7.0); install the CUDA toolkit 12",
        ),
        (12, (13, 0), 70, ""),
    ],
)
def test_driver_gpu_and_toolkit_go_together(tmp_path, monkeypatch, major, driver, capability, message):
    toolkit(tmp_path / "cuda", major)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    gpu = cuda.Gpu("A GPU", capability, driver)
    if message:
        assert problem(gpu).startswith(message)
    else:
        assert cuda.find(gpu)


def test_the_driver_is_asked_for_the_gpu(monkeypatch):
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver(12040, 89))
    assert cuda.first_gpu() == cuda.Gpu("NVIDIA H100 80GB HBM3", 89, (12, 4))
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda name: Driver(count=0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(cuda.NoCuda, match=r"^the NVIDIA driver finds no GPU \(CUDA_VISIBLE_DEVICES=7\)$"):
        cuda.first_gpu()

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(cuda.ctypes, "CDLL", absent)
    with pytest.raises(cuda.NoCuda, match="^no NVIDIA driver$"):
        cuda.environment()


@pytest.mark.parametrize("major, standard", [(11, "-std=c++14"), (12, "-std=c++14"), (13, "-std=c++17")])
def test_the_wrapper_asks_for_another_standard_with_cuda_13_alone(tmp_path, monkeypatch, major, standard):
    toolkit(tmp_path / "a folder", major)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "a folder"))
    arguments = ["-x", "cu", "-DX=-std=c++14", "-arch=compute_90", "-code=sm_90", "a file.cu"]
    assert passed_on(made(), "-std=c++14", *arguments) == [standard, *arguments]


@pytest.mark.parametrize("version", ["14.2.0", "15.1.0"])
def test_nvcc_gets_the_flags_of_new_compilers_in_its_own_spelling(tmp_path, monkeypatch, version):
    toolkit(tmp_path / "cuda", 12)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\necho 'g++ (Debian {version}) {version}'\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("cc_path", str(compiler))
    flags = compat.gcc_flags()
    new = ["-include", "cstdint", "-Xcompiler", "-Wno-template-body"] if flags else []
    assert bool(flags) == (version > "15") and passed_on(made(), *flags, "x.cu") == [*new, "x.cu"]


@pytest.mark.parametrize(
    "major, capability, ptx", [(13, 90, False), (13, 100, True), (13, 120, True), (12, 90, False), (12, 121, True)]
)
def test_ptx_is_asked_for_where_the_machine_code_does_not_run(tmp_path, monkeypatch, major, capability, ptx):
    toolkit(tmp_path / "cuda", major)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    folder = made(cuda.Gpu("A GPU", capability, (13, 0)))
    assert passed_on(folder, "-arch=compute_90", "-code=sm_90", "x.cu") == [
        "-arch=compute_90",
        *["-code=compute_90"] * ptx,
        "-code=sm_90",
        "x.cu",
    ]


def test_the_folder_is_made_anew_when_anything_it_is_made_from_changes(tmp_path, monkeypatch):
    home = toolkit(tmp_path / "cuda", 13).parent.parent
    monkeypatch.setenv("CUDA_HOME", str(home))
    folders = [made()]
    assert made() == folders[0]

    def changed():
        folders.append(made())
        assert len(set(folders)) == len(folders)

    files(home, "include/new.h")
    changed()
    files(home, "lib64/libcublas.so.13.1.2")
    changed()
    (home / "bin/nvcc").write_text((home / "bin/nvcc").read_text().replace("13.0.88", "13.0.99"))
    changed()
    monkeypatch.setattr(cuda, "NPP_HEADER", "// another\n")
    changed()
    folders.append(made(cuda.Gpu("A100", 80, (13, 0))))
    assert len(set(folders)) == len(folders)
    home.rename(tmp_path / "moved")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "moved"))
    changed()


def test_a_folder_whose_making_was_stopped_is_not_used(tmp_path, monkeypatch):
    toolkit(tmp_path / "cuda", 13)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    write = cuda._write

    def stopped(folder, content):
        write(folder, dict(list(content.items())[:3]))
        os._exit(9)

    monkeypatch.setattr(cuda, "_write", stopped)
    child = multiprocessing.get_context("fork").Process(target=made)
    child.start()
    child.join()
    assert child.exitcode == 9 and list(cuda.CACHE.expanduser().iterdir())
    monkeypatch.setattr(cuda, "_write", write)
    check_complete(made())


def test_two_processes_make_the_same_folder(tmp_path, monkeypatch):
    toolkit(tmp_path / "cuda", 13)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    write, other = cuda._write, []

    def late(folder, content):
        write(folder, content)
        monkeypatch.setattr(cuda, "_write", write)
        other.append(made())  # the other process is ready before this one

    monkeypatch.setattr(cuda, "_write", late)
    assert made() == other[0]
    check_complete(other[0])
    assert list(cuda.CACHE.expanduser().iterdir()) == other


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    toolkit(tmp_path / "cuda", 13)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    files(tmp_path, "home")
    with pytest.raises(
        cuda.NoCuda, match=r"^cannot write .*home/\.cache/jclip/cuda/\w+ \(Not a directory\); set HOME to a folder"
    ):
        made()


def test_the_variables(tmp_path, monkeypatch):
    toolkit(tmp_path / "cuda", 13)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(cuda, "_has_python_config", lambda: True)
    folder = made()
    variables = {
        "nvcc_path": f"{folder}/bin/nvcc",
        "conv_opt": "1",
        "use_cutlass": "0",
        "use_cutt": "0",
        "cache_name": "jclip_cuda",
    }
    assert cuda.environment() == variables
    monkeypatch.setattr(cuda, "_has_python_config", lambda: False)
    variables = cuda.environment()
    assert variables["python_config_path"] == str(Path(variables["nvcc_path"]).with_name("python3-config"))


@pytest.mark.parametrize(
    "option, expected",
    [
        ("--includes", "import sysconfig as s; print('-I' + s.get_path('include'), '-I' + s.get_path('platinclude'))"),
        ("--extension-suffix", "import sysconfig as s; print(s.get_config_var('EXT_SUFFIX'))"),
    ],
)
def test_python_config_answers_for_this_python(tmp_path, monkeypatch, option, expected):
    toolkit(tmp_path / "cuda", 13)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(cuda, "_has_python_config", lambda: False)
    answer = subprocess.run([made() / "bin/python3-config", option], capture_output=True, text=True).stdout
    assert answer == subprocess.run([sys.executable, "-c", expected], capture_output=True, text=True).stdout


def test_nvcc_of_the_users_own_is_used_as_it_is(tmp_path, monkeypatch):
    """Jittor uses the libraries beside it. With libcudart elsewhere it would not start, not even on the CPU."""
    program = nvcc(tmp_path / "own/bin/nvcc", 12)
    monkeypatch.setenv("nvcc_path", str(program))
    for folder in ("lib", "lib64/stubs", "lib/x86_64-linux-gnu"):
        files(tmp_path / "own" / folder, "libcudart.so")
        with pytest.raises(cuda.NoCuda, match=f"^nvcc at {program}, but no {tmp_path}/own/lib64/libcudart.so$"):
            cuda.environment()
    files(tmp_path / "own/lib64", "libcudart.so")
    assert cuda.environment() == cuda.VARIABLES and not cuda.CACHE.expanduser().exists()


def test_nvcc_of_cuda_13_itself_is_not_one_that_jittor_can_use(tmp_path, monkeypatch):
    toolkit(tmp_path / "cuda", 13)
    monkeypatch.setattr(cuda, "nvcc_version", lambda nvcc: (13, 0, 88))
    (tmp_path / "cuda/bin/nvcc").write_bytes(b"\x7fELF")
    monkeypatch.setenv("nvcc_path", str(tmp_path / "cuda/bin/nvcc"))
    with pytest.raises(cuda.NoCuda, match="unset nvcc_path"):
        cuda.environment()


# ---- with the CUDA of this machine, where it has one ----

LAUNCHES = """
#include "{project}/jclip/kernels.cuh"
#include "{project}/fewshot/cache_logits.cuh"
template <class T> void every(float* x, T* t, int* i) {{
    clip::patches(x, t, 1, 4, 2);
    clip::tokens(t, x, x, x, 1, 1, 4);
    clip::layer_norm(x, x, x, t, 1, 4, 1e-5f);
    clip::residual(x, t, x, x, 1, 4);
    clip::block<64, false>(x, x, x, t, x, t, x, x, x, t, x, t, x, i, x, t, 1, 1, 64, 256, 256, 1, true, 1e-5f);
    clip::block<20, true>(x, x, x, t, x, t, x, x, x, t, x, t, x, i, x, t, 1, 1, 20, 80, 80, 1, true, 1e-5f);
}}
void all(float* x, half* h, uint8_t* bytes, int* i) {{
    clip::normalise(bytes, x, x, 1, 1);
    every(x, x, i), every(x, h, i);
    cache::logits<<<1, 256>>>(x, x, i, i, x, 1, 1, 1, 1, 1);
    cache::gradient<<<1, 256>>>(x, i, x, x, 1, 1, 1, 1, 1);
    cache::cross_entropy<<<1, 256>>>(x, i, x, 1);
    cache::cross_entropy_gradient<<<1, 256>>>(x, i, x, x, 1);
}}
"""


@pytest.fixture
def installed(bare, monkeypatch):
    """nvcc of this machine; the test is skipped where there is none."""
    monkeypatch.undo()
    program = next(cuda._nvccs(H100), None)
    if not program:
        pytest.skip("needs nvcc")
    return cuda.examine(program)


@pytest.mark.parametrize("architecture", [80, 90])
def test_our_kernels_compile(installed, tmp_path, architecture):
    if "cublas_v2.h" in installed.missing:
        pytest.skip("needs cublas_v2.h; CUDA_PACKAGES names folders of pip's packages")
    (tmp_path / "all.cu").write_text(LAUNCHES.format(project=PROJECT))
    done = subprocess.run(
        [
            installed.nvcc,
            "-std=c++17",
            f"-arch=compute_{architecture}",
            f"-code=sm_{architecture}",
            "--use_fast_math",
            *(f"-I{folder}" for folder in installed.includes),
            "-c",
            "all.cu",
            "-o",
            "all.o",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


DRIVER = r"""
#include <cstddef>
#include <cstring>
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDriverGetVersion(int* version) { *version = MAJOR * 1000 + 990; return 0; }
int cuDeviceGet(int* device, int) { *device = 0; return 0; }
int cuDeviceGetName(char* name, int size, int) { strncpy(name, "Stand-in", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) { *value = attribute == 75 ? 9 : 0; return 0; }
}
"""
RUNTIME = r"""
#include <cstdlib>
#include <cstring>
#include <cuda_runtime_api.h>
#define OK return cudaSuccess;
extern "C" {
cudaError_t cudaGetDeviceCount(int* count) { *count = 1; OK }
cudaError_t cudaGetDevice(int* device) { *device = 0; OK }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    memset((void*)p, 0, sizeof *p); p->major = 9; p->warpSize = 32; p->multiProcessorCount = 1; p->totalGlobalMem =
    (size_t)8 << 30; OK
}
cudaError_t cudaMemGetInfo(size_t* unused, size_t* all) { *unused = *all = (size_t)8 << 30; OK }
cudaError_t cudaMalloc(void** p, size_t n) { *p = calloc(n, 1); OK }
cudaError_t cudaMallocHost(void** p, size_t n) { *p = calloc(n, 1); OK }
cudaError_t cudaMallocManaged(void** p, size_t n, unsigned) { *p = calloc(n, 1); OK }
cudaError_t cudaFree(void* p) { free(p); OK }
cudaError_t cudaFreeHost(void* p) { free(p); OK }
cudaError_t cudaMemcpy(void* to, const void* from, size_t n, cudaMemcpyKind) { memcpy(to, from, n); OK }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) { memcpy(to, from, n);
OK }
cudaError_t cudaMemset(void* p, int value, size_t n) { memset(p, value, n); OK }
cudaError_t cudaMemsetAsync(void* p, int value, size_t n, cudaStream_t) { memset(p, value, n); OK }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void* x, unsigned) { f(s, cudaSuccess, x); OK
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t f, void* x) { f(x); OK }
const char* cudaGetErrorName(cudaError_t) { return ""; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
}
"""


def build(library: Path, include: Path, *texts: str) -> None:
    sources = [library.with_name(f"{library.name}.{i}.cc") for i in range(len(texts))]
    library.parent.mkdir(parents=True, exist_ok=True)
    for source, text in zip(sources, texts):
        source.write_text(text)
    subprocess.run(
        ["g++", "-shared", "-fPIC", f"-I{include}", *sources, f"-Wl,-soname,{library.name}", "-o", library], check=True
    )


def stand_in(library: Path, real: Path, include: Path) -> None:
    """Build a library with the functions of the real one; all but those of RUNTIME do nothing and return 0."""
    own = RUNTIME if "cudart" in library.name else ""
    listed = subprocess.run(["nm", "-D", "--defined-only", real], capture_output=True, text=True, check=True).stdout
    names = [name for name in re.findall(r" T (\w+)", listed) if f" {name}(" not in own]
    build(library, include, own, "".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in names))


USE = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from jclip import runtime
assert runtime.use("auto") == "cuda"
import jittor as jt
x = jt.ones((4, 5))
print((x + 1).numpy().shape, jt.matmul(x, jt.ones((5, 3))).numpy().shape, x.reshape(2, 2, 5).transpose(1,
2).numpy().shape)
"""


@pytest.mark.slow
def test_jittor_is_built_with_this_cuda_and_its_operators_compile(installed, tmp_path):
    """With a simulated GPU that computes nothing, so the results are not checked."""
    if installed.missing:
        pytest.skip(f"needs {', '.join(installed.missing)}; CUDA_PACKAGES names folders of pip's packages")
    home, stands, include = tmp_path / "home", tmp_path / "stand-ins", installed.includes[0]
    build(stands / "libcuda.so.1", include, DRIVER.replace("MAJOR", str(installed.version[0])))
    (stands / "libcuda.so").symlink_to("libcuda.so.1")
    environment = {name: value for name, value in os.environ.items() if name not in ("nvcc_path", *cuda.VARIABLES)}
    environment.update(HOME=str(home), LD_LIBRARY_PATH=str(stands))

    def python(code: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True
        )

    nvcc_path = python("import jclip, os; print(os.environ['nvcc_path'])").stdout.strip()
    folder = Path(nvcc_path).parent.parent
    assert folder.parent == home / ".cache/jclip/cuda"
    for link in (folder / "lib64").glob("*.so.*"):
        stand_in(stands / link.name, link.resolve(), include)
        for name in (link, link.with_name(f"{link.name.split('.so.')[0]}.so")):
            name.unlink()
            name.symlink_to(stands / link.name)
    archive = next((Path.home() / ".cache/jittor/mkl").glob("dnnl*.tgz"), None)  # of oneDNN, else it is downloaded
    if archive:
        (home / ".cache/jittor/mkl").mkdir(parents=True)
        shutil.copy(archive, home / ".cache/jittor/mkl")
    for first in (True, False):
        done = python(USE)
        assert done.stdout.splitlines()[-1:] == ["(4, 5) (4, 3) (2, 5, 2)"], done.stderr
        assert done.stderr.splitlines()[-1] == (
            f"Jittor 1.3.11.0 computes on Stand-in (CUDA {'.'.join(map(str, installed.version[:2]))}, float32)"
        )
        assert ("compiles its core on its first use" in done.stderr) == first
