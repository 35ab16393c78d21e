"""What Jittor needs on systems newer than itself is there where it is needed, and only there."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import python

from jclip import ClipError, compat, compiling, jittor_cache, progress


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Give compiler(name, version), which makes it Jittor's compiler."""

    def make(name: str, version: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{name} (Debian {version}-2) {version}'\n")
        path.chmod(0o755)
        monkeypatch.setenv("cc_path", str(path))

    return make


@pytest.mark.parametrize(
    "name, version, flags",
    [
        ("g++", "14.2.0", []),
        ("g++", "15.1.0", ["-includecstdint", "-Wno-template-body"]),
        ("x86_64-linux-gnu-g++-16", "16.2.0", ["-includecstdint", "-Wno-template-body"]),
        ("clang++", "19.1.7", []),
    ],
)
def test_newer_compilers_get_flags_and_others_none(compiler, tmp_path, monkeypatch, name, version, flags):
    compiler(name, version)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    assert compat.compiler_flags(tmp_path) == flags and not (tmp_path / "jclip").exists()


def test_numpy_2_gets_a_header_in_a_folder_named_by_its_content(compiler, tmp_path, monkeypatch):
    compiler("g++", "14.2.0")
    monkeypatch.setattr(np, "__version__", "2.5.5")
    header = tmp_path / "numpy.h"
    folders = []
    for content in ("one", "two"):
        header.write_text(content)
        monkeypatch.setattr(compat, "HEADER", header)
        (flag,) = compat.compiler_flags(tmp_path)
        folders.append(Path(flag[len('-I"') : -1]))
        assert flag == f'-I"{folders[-1]}"' and (folders[-1] / "pyjt/numpy.h").read_text() == content
    assert folders[0] != folders[1] and (folders[0] / "pyjt/numpy.h").read_text() == "one"
    written = (folders[1] / "pyjt/numpy.h").stat().st_mtime_ns
    assert compat.compiler_flags(tmp_path) == [f'-I"{folders[1]}"']
    assert (folders[1] / "pyjt/numpy.h").stat().st_mtime_ns == written  # Jittor would compile again


def test_a_header_that_cannot_be_written_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.5.5")
    with pytest.raises(ClipError, match=r"^cannot write /dev/null/jclip/.*numpy\.h \(.*\); set HOME to a folder"):
        compat.compiler_flags(Path("/dev/null"))


def test_the_users_flags_come_first_and_are_not_repeated(compiler, monkeypatch):
    compiler("g++", "15.1.0")
    monkeypatch.setattr(np, "__version__", "1.26.4")
    monkeypatch.setenv("cc_flags", "-Wno-template-body -g")
    assert jittor_cache.compiler_flags() == "-Wno-template-body -g -includecstdint"
    monkeypatch.delenv("cc_flags")
    assert jittor_cache.compiler_flags() == "-includecstdint -Wno-template-body"


def test_the_variable_of_the_flags_is_not_left_behind_and_not_set_without_need():
    code = "import os, jclip, jittor; print(os.environ.get('cc_flags'), ' -g ' in jittor.flags.cc_flags)"
    done = python(code, nvcc_path="")
    assert done.stdout.strip() == "None False", done.stderr


@pytest.mark.parametrize("version, changed", [((3, 12), False), ((3, 13), True), ((3, 15), True)])
def test_locals_has_what_a_module_of_jittor_has_imported(monkeypatch, version, changed):
    monkeypatch.setattr(compat, "PYTHON", version)
    module = ModuleType("jittor_utils")
    compat.before_import(module)
    assert hasattr(module, "locals") is changed
    exec("def imported():\n    exec('import colorsys')\n    return locals()['colorsys']", vars(module))
    if changed or sys.version_info < (3, 13):
        assert module.imported() is sys.modules["colorsys"]


@pytest.mark.parametrize("version, method", [((3, 13), None), ((3, 14), "fork")])
def test_processes_that_compile_are_forked(monkeypatch, version, method):
    monkeypatch.setattr(compat, "PYTHON", version)
    module = ModuleType("jittor_utils")
    module.Pool = None
    compat.after_import(module)
    assert (module.Pool and module.Pool.__self__.get_start_method()) == method


def test_the_modules_that_are_changed_are_those_of_jittor():
    """Jittor is pinned; another version may have moved what compat.py changes."""
    done = python("import jclip, jittor, sys\nfrom jclip import compat, importing\n"
                  "for name in compat.MODULES: print(type(sys.modules[name].__loader__).__name__)")  # fmt: skip
    assert done.stdout.split()[-2:] == ["_CompatibleLoader"] * 2, done.stderr


@pytest.mark.parametrize(
    "numpy", [lambda array: np.zeros_like(array), lambda array: array[:2], lambda array: 1 / 0], ids=str
)
def test_arrays_that_do_not_come_back_as_they_went_are_an_error(numpy):
    def jt(change):
        return SimpleNamespace(
            __version__="1.3.11.0", array=lambda array: SimpleNamespace(numpy=lambda: change(array.copy()))
        )

    compat.check_arrays(jt(lambda array: array), "")
    with pytest.raises(
        ClipError, match=r"^Jittor 1\.3\.11\.0 does not work with numpy .*: import jclip before jittor$"
    ):
        compat.check_arrays(jt(numpy), "import jclip before jittor")


def test_while_jittor_compiles_lines_say_how_far_it_is(monkeypatch, caplog, tmp_path):
    counts = iter([0, 0, 78, 78, 200])
    monkeypatch.setattr(jittor_cache, "count_objects", lambda since: next(counts, 200))
    monkeypatch.setattr(compiling, "INTERVAL", 0.01)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    caplog.set_level("INFO", "jclip")
    with compiling.shown("", False):
        for _ in range(1000):
            if "157 of 157" in caplog.text:
                break
            compiling.threading.Event().wait(0.01)
    first, *lines = caplog.messages
    assert first == "Jittor compiles its core on its first use: about 3 minutes, once."
    assert any(line.startswith("compiling Jittor: 78 of 157, ") for line in lines), lines
    caplog.clear()
    with compiling.shown("", True):
        pass
    assert not caplog.messages


def test_compiled_files_are_counted_from_a_time_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("cache_name", "main")
    objects = tmp_path / ".cache/jittor" / jittor_cache._core_folders().replace("*", "x") / "obj_files"
    objects.mkdir(parents=True)
    for name, seconds in (("old.cc.o", 100), ("new.cc.o", 300), ("new.cc.o.key", 300)):
        (objects / name).touch()
        os.utime(objects / name, (seconds, seconds))
    assert jittor_cache.count_objects(since=200) == 1
