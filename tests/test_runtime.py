"""Jittor is imported, and the device chosen, on machines of all sorts; each in a process of its own."""
import os
import stat
import subprocess
import sys

import pytest

from conftest import PROJECT
from jclip import runtime


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=600,
                          env={**{k: v for k, v in os.environ.items() if k not in ("nvcc_path", "use_mpi", "use_parallel_op_compiler")}, **environment})


@pytest.fixture
def broken_tools(tmp_path):
    """A folder for PATH with an nvcc that has no libraries and an mpicc that does not work."""
    for name, output in (("nvcc", "release 12.2, V12.2.140"), ("mpicc", "")):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho '{output}'\nexit 0\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"


def test_importing_jclip_does_not_import_jittor():
    assert python("import sys, jclip; assert 'jittor' not in sys.modules").returncode == 0


def test_half_a_cuda_and_a_broken_mpi_do_not_stop_it(broken_tools):
    done = python("from jclip import runtime; assert runtime.use('auto') == 'cpu'; import jittor as jt; print(jt.ones((2, 2)).numpy().sum())", PATH=broken_tools)
    assert done.stdout.strip() == "4.0", done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("Jittor")]
    assert len(said) == 1 and "computes on the CPU" in said[0] and "no CUDA: " in said[0]


def test_jittor_may_be_imported_between_jclip_and_the_first_use(broken_tools):
    done = python("import jclip; import jittor; from jclip import runtime; print(runtime.use('auto'))", PATH=broken_tools)
    assert done.stdout.strip() == "cpu", done.stderr


def test_what_the_user_has_set_is_left_alone():
    names = dict(nvcc_path="/opt/nvcc", use_mpi="1", use_parallel_op_compiler="3")
    done = python(f"import os, jclip; print(*[os.environ[name] for name in {list(names)}])", **names)
    assert done.stdout.split() == list(names.values())


@pytest.mark.parametrize("set_by_the_user, threads", [({}, "0"), ({"use_parallel_op_compiler": "3"}, "3")])
def test_kernels_are_compiled_one_after_another_unless_the_user_asks(set_by_the_user, threads):
    done = python("from jclip import runtime; print(runtime.jittor().flags.use_parallel_op_compiler)", **set_by_the_user)
    assert done.stdout.strip() == threads, done.stderr


class Driver:
    """libcuda of a machine with one GPU."""

    def cuInit(self, _):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 1
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = 12040
        return 0


def test_the_cuda_that_jittor_has_brought_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("nvcc_path", raising=False)
    problem, cuda = runtime.cuda_problem.__wrapped__, tmp_path / ".cache/jittor/jtcuda/cuda12.2_cudnn8_linux"
    assert "jtcuda" not in problem()
    (cuda.parent / "cuda11.2_cudnn8_linux").mkdir(parents=True)  # of an older driver
    assert problem() == f"no {cuda}/bin/nvcc, which Jittor would download; run: python -m jittor_utils.install_cuda"
    (cuda / "bin").mkdir(parents=True)
    (cuda / "bin/nvcc").write_text("#!/bin/sh\necho 'release 12.2, V12.2.140'\n")
    (cuda / "bin/nvcc").chmod(0o755)
    assert problem() == f"nvcc at {cuda}/bin/nvcc, but no {cuda}/lib64/libcudart.so"
    (cuda / "lib64").mkdir()
    (cuda / "lib64/libcudart.so").touch()
    assert problem() == ""


def test_libcudart_is_looked_for_where_jittor_loads_it(tmp_path, monkeypatch):
    """Elsewhere does not count: Jittor would not start, where it computes well on the CPU."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'release 12.2, V12.2.140'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: Driver())
    monkeypatch.setenv("nvcc_path", str(nvcc))
    problem = runtime.cuda_problem.__wrapped__
    for folder in ("lib", "lib64/stubs", "lib/x86_64-linux-gnu"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "libcudart.so").touch()
        assert problem() == f"nvcc at {nvcc}, but no {tmp_path}/lib64/libcudart.so"
    (tmp_path / "lib64/libcudart.so").touch()
    assert problem() == ""


@pytest.mark.parametrize("device, message", [("cuda", "CUDA cannot be used here: no NVIDIA driver; run with --device cpu"), ("gpu", "unknown device 'gpu'")])
def test_a_device_that_is_not_there_is_one_clear_error(device, message):
    done = python(f"from jclip import runtime; runtime.cuda_problem = lambda: 'no NVIDIA driver'\nruntime.use({device!r})")
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_no_compiler_is_one_clear_error():
    done = python("import os; os.environ['PATH'] = ''; from jclip import runtime; runtime.use('cpu')", cc_path="")
    assert done.returncode == 1 and "g++ is missing" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("first", ["jclip", "jclip, jittor", "jittor, jclip"])
def test_ctrl_c_and_killed_children_act_as_in_any_python(first):
    done = python(f"import {first}" + """
import os, signal, subprocess
from jclip import runtime
runtime.use("cpu")
assert subprocess.run(["sh", "-c", "kill -9 $$"]).returncode == -9
try:
    os.kill(os.getpid(), signal.SIGINT)
    [None for _ in range(10**7)]
except KeyboardInterrupt:
    print("interrupted")
""", nvcc_path="", use_mpi="0")
    assert done.stdout.strip() == "interrupted", done.stderr


def test_handlers_of_the_users_own_stay():
    done = python("""
import signal
mine = lambda *_: None
signal.signal(signal.SIGCHLD, mine), signal.signal(signal.SIGINT, mine)
from jclip import runtime
runtime.use("cpu")
assert signal.getsignal(signal.SIGCHLD) is signal.getsignal(signal.SIGINT) is mine
signal.raise_signal(signal.SIGCHLD), signal.raise_signal(signal.SIGINT)
print("alive")
""")
    assert done.stdout.strip() == "alive", done.stderr
