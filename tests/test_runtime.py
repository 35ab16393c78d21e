"""Jittor is imported, and the device chosen, on machines of all sorts; each in a process of its own."""
import os
import stat
import subprocess
import sys

import pytest

from conftest import PROJECT


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=600,
                          env={**{k: v for k, v in os.environ.items() if k not in ("nvcc_path", "use_mpi")}, **environment})


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
    done = python("import os, jclip; print(os.environ['nvcc_path'], os.environ['use_mpi'])", nvcc_path="/opt/nvcc", use_mpi="1")
    assert done.stdout.split() == ["/opt/nvcc", "1"]


@pytest.mark.parametrize("device, message", [("cuda", "CUDA cannot be used here: no NVIDIA driver; run with --device cpu"), ("gpu", "unknown device 'gpu'")])
def test_a_device_that_is_not_there_is_one_clear_error(device, message):
    done = python(f"from jclip import runtime; runtime.cuda_problem = lambda: 'no NVIDIA driver'\nruntime.use({device!r})")
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_no_compiler_is_one_clear_error():
    done = python("import os; os.environ['PATH'] = ''; from jclip import runtime; runtime.use('cpu')", cc_path="")
    assert done.returncode == 1 and "g++ is missing" in done.stderr.splitlines()[-1]


def test_ctrl_c_and_killed_children_act_as_in_any_python():
    done = python("""
import os, signal, subprocess
from jclip import runtime
runtime.use("cpu")
assert subprocess.run(["sh", "-c", "kill -9 $$"]).returncode == -9
try:
    os.kill(os.getpid(), signal.SIGINT)
    [None for _ in range(10**7)]
except KeyboardInterrupt:
    print("interrupted")
""")
    assert done.stdout.strip() == "interrupted", done.stderr
