"""Jittor is imported and the device chosen on machines with and without CUDA, most tests in a process of its own."""

import fnmatch
import functools
import os
import stat
import sys
from pathlib import Path

import pytest
from conftest import jittor_alone, python

from jclip import jittor_cache, runtime

SHOW_LOG = "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"


@pytest.fixture
def broken_tools(tmp_path):
    """A value of PATH with an nvcc without libraries and an mpicc that does not work."""
    for name, output in (("nvcc", "release 12.2, V12.2.140"), ("mpicc", "")):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho '{output}'\nexit 0\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"


def test_importing_jclip_does_not_import_jittor():
    assert python("import sys, jclip; assert 'jittor' not in sys.modules").returncode == 0


def test_an_incomplete_cuda_and_a_broken_mpi_do_no_harm(broken_tools):
    done = python(
        SHOW_LOG + "from jclip import runtime; assert runtime.use('auto') == 'cpu'\n"
        "import jittor as jt; print(jt.ones((2, 2)).numpy().sum())",
        PATH=broken_tools,
    )
    assert done.stdout.strip() == "4.0", done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Jittor"))
    assert "computes on the CPU" in line and "no CUDA: " in line


def test_a_library_user_sees_no_log_unless_they_ask():
    done = python("from jclip import runtime; print(runtime.use('cpu'))", nvcc_path="")
    assert done.stdout.strip() == "cpu" and "Jittor" not in done.stderr, done.stderr


def test_a_command_shows_each_choice_of_device_in_one_line_of_stderr():
    code = "from fewshot.cli import command; from jclip import runtime\n"
    code += "for device in ('cpu', 'auto', 'cpu'):\n    command(lambda argv: print(runtime.use(device)))()\n"
    done = python(code, nvcc_path="")
    assert done.stdout.split() == ["cpu"] * 3, done.stderr
    cpu, auto = (line for line in done.stderr.splitlines() if "compiles its core" not in line)
    assert cpu.startswith("Jittor ") and " computes on the CPU (" in cpu and cpu.endswith(")")
    assert auto.startswith(f"{cpu}; no CUDA: ")


def test_the_import_says_nothing_where_python_compiles_jittors_modules(tmp_path):
    """From Python 3.12 on, it warns of escapes in their strings."""
    done = python("from jclip import runtime; runtime.jittor()", PYTHONPYCACHEPREFIX=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_jittor_may_be_imported_between_jclip_and_the_first_use(broken_tools):
    done = python(
        "import jclip; import jittor; from jclip import runtime; print(runtime.use('auto'))", PATH=broken_tools
    )
    assert done.stdout.strip() == "cpu", done.stderr


def test_variables_of_the_user_are_left_alone():
    names = dict(nvcc_path="/opt/nvcc", use_mpi="1", use_parallel_op_compiler="3")
    done = python(f"import os, jclip; print(*[os.environ[name] for name in {list(names)}])", **names)
    assert done.stdout.split() == list(names.values())


@pytest.mark.parametrize("set_by_the_user, threads", [({}, "0"), ({"use_parallel_op_compiler": "3"}, "3")])
def test_kernels_are_compiled_one_after_another_unless_the_user_asks(set_by_the_user, threads):
    done = python(
        "from jclip import runtime; print(runtime.jittor().flags.use_parallel_op_compiler)", **set_by_the_user
    )
    assert done.stdout.strip() == threads, done.stderr


VARIABLES = {"nvcc_path": "/made/bin/nvcc", "conv_opt": "1", "use_cutlass": "0"}


@pytest.fixture
def untouched(monkeypatch):
    """A process in which Jittor is not imported and none of its variables is set."""
    monkeypatch.delitem(sys.modules, "jittor", raising=False)
    for name in (*VARIABLES, "use_parallel_op_compiler", "use_cutt", "cache_name"):
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setattr(runtime, "_cuda_setup", functools.cache(runtime._cuda_setup.__wrapped__))
    return monkeypatch


def test_variables_for_cuda_are_set_but_none_of_the_users(untouched):
    untouched.setattr(runtime.cuda, "environment", lambda: VARIABLES)
    untouched.setenv("conv_opt", "0")
    runtime.prepare()
    assert {name: os.environ[name] for name in VARIABLES} == {**VARIABLES, "conv_opt": "0"}
    assert runtime.cuda_problem() == ""


def test_without_cuda_jittor_is_built_for_the_cpu_and_the_reason_is_kept(untouched):
    def absent():
        raise runtime.cuda.NoCuda("no nvcc")

    untouched.setattr(runtime.cuda, "environment", absent)
    runtime.prepare()
    assert os.environ["nvcc_path"] == "" and "conv_opt" not in os.environ
    assert runtime.cuda_problem() == "no nvcc"


def test_cuda_that_is_switched_off_is_not_searched(untouched):
    untouched.setattr(runtime.cuda, "environment", lambda: pytest.fail("asked for"))
    untouched.setenv("nvcc_path", "")
    runtime.prepare()
    assert "conv_opt" not in os.environ


@pytest.mark.parametrize(
    "nvcc, left", [("/user/cuda/bin/nvcc", "/user/cuda/bin/nvcc"), ("~/.cache/jclip/cuda/key/bin/nvcc", "")]
)
def test_nvcc_that_cannot_be_used_is_left_where_it_is_the_users(untouched, nvcc, left):
    """The other path is inherited from a parent process in which the GPU was visible."""
    untouched.setattr(runtime, "cuda_problem", lambda: "the NVIDIA driver finds no GPU")
    untouched.setenv("nvcc_path", os.path.expanduser(nvcc))
    runtime.prepare()
    assert os.environ["nvcc_path"] == left


@pytest.mark.parametrize("name, kept", [("jclip_cuda", None), ("mine", "mine")])
def test_without_cuda_jittor_does_not_build_where_its_core_for_cuda_lies(untouched, name, kept):
    """With one cache for both, Jittor would import the core for the CPU also with CUDA."""
    untouched.setenv("nvcc_path", "")
    untouched.setenv("cache_name", name)
    runtime.prepare()
    assert os.environ.get("cache_name") == kept


FAKE_JITTOR = """
import sys, types
from jclip import cuda, runtime
jt = types.SimpleNamespace(__version__="1.3.11.0", has_cuda={has_cuda}, flags=types.SimpleNamespace(use_cuda=0),
                           compiler=types.SimpleNamespace(nvcc_version=[13, 0, 88]))
runtime.jittor = lambda: jt
runtime.has_bfloat16 = lambda: False
runtime.cuda_problem = lambda: {problem!r}
cuda.first_gpu = lambda: cuda.Gpu("NVIDIA H100 80GB HBM3", 90, (13, 0))
print(runtime.use({device!r}, {precision!r}), jt.flags.use_cuda)
"""


@pytest.mark.parametrize(
    "device, precision, has_cuda, problem, chosen, line",
    [
        ("auto", "float32", 1, "", "cuda 1", "Jittor 1.3.11.0 computes on NVIDIA H100 80GB HBM3 (CUDA 13.0, float32)"),
        ("cuda", "half", 1, "", "cuda 1", "Jittor 1.3.11.0 computes on NVIDIA H100 80GB HBM3 (CUDA 13.0, half)"),
        ("cpu", "float32", 1, "", "cpu 0", "Jittor 1.3.11.0 computes on the CPU ("),
        ("auto", "float32", 0, "no nvcc", "cpu 0", ", float32); no CUDA: no nvcc"),
        ("auto", "float32", 0, "", "cpu 0", "; no CUDA: switched off by nvcc_path"),
        (
            "cpu",
            "half",
            1,
            "",
            "",
            "needs CUDA or a CPU with AVX512-BF16, which this CPU lacks; run with --precision float32",
        ),
        (
            "auto",
            "half",
            0,
            "no nvcc",
            "",
            "a CPU with AVX512-BF16, which this CPU lacks, and there is no CUDA: no nvcc; run with --precision float32",
        ),
        ("cuda", "half", 0, "no nvcc", "", "CUDA cannot be used here: no nvcc; run with --device cpu"),
        ("cpu", "double", 0, "", "", "unknown precision 'double'; expected one of float32, half"),
    ],
)
def test_the_chosen_device_is_logged(device, precision, has_cuda, problem, chosen, line):
    done = python(SHOW_LOG + FAKE_JITTOR.format(**locals()))
    assert done.stdout.strip() == chosen and line in done.stderr.splitlines()[-1], done.stderr
    assert len(done.stderr.splitlines()) == 1 or not chosen


@pytest.mark.parametrize(
    "device, has_cuda, chosen, line",
    [
        ("cpu", 1, "cpu 0", " computes on the CPU ("),
        ("auto", 0, "cpu 0", ", half); no CUDA: no nvcc"),
        ("auto", 1, "cuda 1", "computes on NVIDIA H100 80GB HBM3 (CUDA 13.0, half)"),
    ],
)
def test_half_precision_is_that_of_the_gpu_or_else_of_the_cpu(device, has_cuda, chosen, line):
    code = FAKE_JITTOR.format(device=device, precision="half", has_cuda=has_cuda, problem="no nvcc")
    done = python(SHOW_LOG + code.replace("has_bfloat16 = lambda: False", "has_bfloat16 = lambda: True"))
    assert done.stdout.strip() == chosen and line in done.stderr and "half)" in done.stderr, done.stderr


@pytest.mark.parametrize("flags, has", [("avx512f avx512_bf16 amx_bf16", True), ("avx512f avx512_vnni", False)])
def test_a_cpu_multiplies_bfloat16_where_its_flags_say_so(monkeypatch, flags, has):
    read = Path.read_text
    cpuinfo = f"model name\t: A CPU\nflags\t\t: fpu {flags} vaes\n"
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo if str(path) == "/proc/cpuinfo" else read(path))
    assert runtime.has_bfloat16() is has

    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    assert not runtime.has_bfloat16()


def test_half_precision_needs_the_tensor_cores_of_its_kernels():
    done = python(FAKE_JITTOR.format(device="auto", precision="half", has_cuda=1, problem="").replace(", 90,", ", 75,"))
    assert done.returncode == 1 and not done.stdout
    assert (
        "needs a GPU of compute capability 8.0, NVIDIA H100 80GB HBM3 has 7.5; run with --precision float32"
        in done.stderr
    )


def core_folder(home, **environment) -> Path:
    """Make the folder below `home` in which Jittor would keep its core, by the pattern that jittor_cache has of it."""
    done = python("from jclip import jittor_cache; print(jittor_cache._core_folders())", **environment)
    folder = Path(home, ".cache/jittor", done.stdout.strip().replace("*", "x"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_jittor_keeps_its_core_where_it_is_looked_for():
    done = python(
        "from jclip import jittor_cache, runtime\nruntime.use('cpu')\nimport jittor as jt\n"
        "print(jt.flags.cache_path)\nprint(jittor_cache.folder())\nprint(jittor_cache._core_folders())",
        nvcc_path="",
    )
    path, folder, pattern = done.stdout.splitlines()
    assert fnmatch.fnmatch(path, f"{folder}/{pattern}"), done.stderr


KEY = "jittor_core.cpython-311-x86_64-linux-gnu.so.key"


def test_a_compiled_core_is_recognised_by_its_link_command(tmp_path, monkeypatch):
    core = core_folder(tmp_path, cache_name="a/branch") / "cu13.0.88_sm_90"
    nvcc = "/cache/key/bin/nvcc"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("cache_name", "a/branch")
    assert not jittor_cache.has_core("") and not jittor_cache.has_core(nvcc)
    core.mkdir()
    command = f"g++ {jittor_cache.compiler_flags()}"
    (core / KEY).write_text(f'{command} -DHAS_CUDA -I"/cache/key/include" -lcudart -L"/cache/key/lib64"')
    assert not jittor_cache.has_core("") and jittor_cache.has_core(nvcc)
    assert not jittor_cache.has_core("/cache/other key/bin/nvcc")
    (core.parent / KEY).write_text(command)
    assert jittor_cache.has_core("")


@pytest.mark.parametrize("other", ["cc_flags", "cache_name", "compiler", "python"])
def test_a_core_compiled_otherwise_is_none(tmp_path, monkeypatch, other):
    """Jittor will compile again, for minutes, which is to be announced."""
    core = core_folder(tmp_path, cache_name="main", cc_flags="")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("cache_name", "main")
    monkeypatch.setenv("cc_flags", '-I"/a folder"')
    (core / KEY).write_text(f"g++ {jittor_cache.compiler_flags()}")
    assert jittor_cache.has_core("")
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'g++ (Debian 11.2.0-1) 11.2.0'\n")
    compiler.chmod(0o755)
    if other == "python":
        monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    else:
        variables = {"cc_flags": "-I/another", "cache_name": "branch", "compiler": str(compiler)}
        monkeypatch.setenv("cc_path" if other == "compiler" else other, variables[other])
    assert not jittor_cache.has_core("")


@pytest.fixture
def unstartable(tmp_path):
    """The environment of a complete CUDA with which the import of Jittor aborts the process."""
    nvcc = tmp_path / ".cache/jclip/cuda/key/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    (tmp_path / "site/jittor").mkdir(parents=True)
    (tmp_path / "site/jittor/__init__.py").write_text(
        "import os, types\nif os.environ['nvcc_path']:\n    os.abort()\n"
        "__version__, has_cuda, flags = '1.3.11.0', 0, types.SimpleNamespace(use_cuda=0)\n"
        "array = lambda values: types.SimpleNamespace(numpy=lambda: values)\n"
    )
    core = core_folder(tmp_path, PYTHONPATH=str(tmp_path / "site"))
    (core / KEY).write_text(  # its core was compiled; it is the import that fails
        f'g++ -DHAS_CUDA -L"{nvcc.parents[1]}/lib64"'
    )
    return {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "site"), "NVCC": str(nvcc)}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("device, line", [("auto", "computes on the CPU"), ("cuda", "CUDA cannot be used here")])
def test_where_jittor_does_not_start_with_cuda_it_computes_on_the_cpu_and_says_why(unstartable, device, line, again):
    if again:
        with open(f"{unstartable['HOME']}/.cache/jclip/cuda/key-failed-13.0", "w") as file:
            file.write("what the compilers said")
    done = python(
        f"""{SHOW_LOG}
import os
os.environ["nvcc_path"] = ""
from jclip import cuda, runtime
del os.environ["nvcc_path"]
cuda.environment = lambda: {{"nvcc_path": os.environ["NVCC"]}}
cuda.first_gpu = lambda: cuda.Gpu("NVIDIA H100", 90, (13, 0))
runtime._cuda_setup.cache_clear()
runtime.prepare()
print(runtime.use({device!r}))
""",
        **unstartable,
    )
    log = f"{unstartable['HOME']}/.cache/jclip/cuda/key-failed-13.0"
    words = "does not start with it" if not again else "has not started with it before"
    assert (
        f"Jittor {words}, {log} says why; delete {os.path.dirname(log)} to try again" in done.stderr.splitlines()[-1]
    ), done.stderr
    assert line in done.stderr.splitlines()[-1] and os.path.exists(log)


@pytest.mark.parametrize(
    "device, message",
    [("cuda", "CUDA cannot be used here: no NVIDIA driver; run with --device cpu"), ("gpu", "unknown device 'gpu'")],
)
def test_a_device_that_is_not_there_is_one_clear_error(device, message):
    done = python(
        f"from jclip import runtime; runtime.cuda_problem = lambda: 'no NVIDIA driver'\nruntime.use({device!r})"
    )
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_no_compiler_is_one_clear_error():
    done = python("import os; os.environ['PATH'] = ''; from jclip import runtime; runtime.use('cpu')", cc_path="")
    assert done.returncode == 1 and "g++ is missing" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("first", ["jclip", "jclip, jittor", pytest.param("jittor, jclip", marks=jittor_alone)])
def test_ctrl_c_and_killed_children_act_as_in_any_python(first):
    done = python(
        f"import {first}"
        + """
import os, signal, subprocess
from jclip import runtime
runtime.use("cpu")
assert subprocess.run(["sh", "-c", "kill -9 $$"]).returncode == -9
try:
    os.kill(os.getpid(), signal.SIGINT)
    [None for _ in range(10**7)]
except KeyboardInterrupt:
    print("interrupted")
""",
        nvcc_path="",
        use_mpi="0",
    )
    assert done.stdout.strip() == "interrupted", done.stderr


@pytest.mark.parametrize("module", ["jittor_utils.misc", "jittor.compile_extern", "jittor.nn"])
def test_ctrl_c_while_jittor_is_imported_ends_the_process_with_130(module):
    done = python(f"""
import os, signal, sys
from jclip import runtime

class Interrupt:
    def find_spec(name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
runtime.use("cpu")
""")
    assert done.returncode == 130 and done.stderr == "\nstopped\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there")
def test_while_jittor_compiles_a_child_may_be_stopped_but_not_killed():
    """Ctrl-Z stops the compilers as well, and Jittor's handler took them for dead."""
    done = python("""
import signal, subprocess, time
from jclip import runtime, signals
signals.restore = lambda: None  # so that Jittor's handlers stay, as they are during the compilation
runtime.use("cpu")
child = subprocess.Popen(["sleep", "60"])
for number in (signal.SIGSTOP, signal.SIGCONT):
    child.send_signal(number)
    time.sleep(0.5)
print("alive", flush=True)
child.kill()
time.sleep(30)
print("not reached")
""")
    assert done.stdout.strip() == "alive" and "Caught SIGCHLD" in done.stderr, done.stderr


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
