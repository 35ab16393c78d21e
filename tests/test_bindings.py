"""The C++ that Jittor writes of its headers is kept, and is what Jittor would write."""

import os
from types import SimpleNamespace

import pytest
from conftest import python

from jclip import bindings, jittor_cache


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a stand-in for Jittor's module as it is after a new import, with the headers that it was asked for."""
    monkeypatch.setattr(jittor_cache, "folder", lambda: tmp_path / "cache")
    (tmp_path / "pyjt_compiler.py").write_text("1")

    def imported(asked: list):
        def compile_src(src, header, basename):
            asked.append(src)
            return f"{header} {basename} {src}" if src else None

        def compile(headers):
            return [new.compile_src(src, "a/h.h", "h") for src in headers]

        new = SimpleNamespace(__file__=tmp_path / "pyjt_compiler.py", compile_src=compile_src, compile=compile)
        bindings.keep(new)
        return new

    return imported


def file_of(tmp_path):
    (file,) = (tmp_path / "cache/jclip").iterdir()
    return file


def test_a_header_is_read_once(module, tmp_path):
    asked = []
    wanted = ["a/h.h h one", None, "a/h.h h two"]
    assert module(asked).compile(["one", "", "two"]) == wanted and asked == ["one", "", "two"]
    written = file_of(tmp_path).stat().st_mtime_ns
    assert module(asked).compile(["one", "", "two"]) == wanted and len(asked) == 3
    assert file_of(tmp_path).stat().st_mtime_ns == written
    assert module(asked).compile(["one", "three"]) == ["a/h.h h one", "a/h.h h three"] and asked[3:] == ["three"]
    assert module(asked).compile(["two", "three"]) == ["a/h.h h two", "a/h.h h three"] and len(asked) == 4


def test_another_version_of_jittor_reads_them_again(module, tmp_path):
    asked = []
    module(asked).compile(["one"])
    (tmp_path / "pyjt_compiler.py").write_text("2")
    module(asked).compile(["one"])
    assert asked == ["one", "one"] and len(list((tmp_path / "cache/jclip").iterdir())) == 2


@pytest.mark.parametrize("damaged", ["", '{"a": ', "[1]", "\0" * 100])
def test_a_damaged_file_is_written_again(module, tmp_path, damaged):
    asked = []
    module(asked).compile(["one"])
    file_of(tmp_path).write_text(damaged)
    assert module(asked).compile(["one"]) == ["a/h.h h one"] and len(asked) == 2
    module(asked).compile(["one"])
    assert len(asked) == 2


def test_where_nothing_can_be_kept_all_is_read_each_time(module, tmp_path):
    (tmp_path / "cache").touch()  # a file in the place of the folder
    asked = []
    for _ in range(2):
        assert module(asked).compile(["one"]) == ["a/h.h h one"]
    assert asked == ["one", "one"] and sorted(os.listdir(tmp_path)) == ["cache", "pyjt_compiler.py"]


def test_what_is_kept_is_what_jittor_would_write():
    done = python(
        """if True:
        import glob, os, jclip, jittor
        from jittor import compiler, pyjt_compiler
        kept, original = pyjt_compiler.compile_src, pyjt_compiler.compile_src.__wrapped__
        written = 0
        for header in glob.glob(f"{compiler.jittor_path}/src/**/*.h", recursive=True):
            with open(header, encoding="utf8") as file:
                arguments = file.read(), header, os.path.basename(header).split(".")[0]
            assert kept(*arguments) == original(*arguments), header
            written += kept(*arguments) is not None
        print(written)"""
    )
    assert int(done.stdout.split()[-1]) > 10, done.stderr  # behind what Jittor prints at its first import
