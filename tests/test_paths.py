"""`~` and `~user` stand for home folders, in every option of every program and in what is called from Python."""

import argparse
import importlib
import pwd
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import tasks
from conftest import PROJECT, draw

import jclip
from fewshot import artifacts, data, prompts
from fewshot.encoder import Encoder
from fewshot.errors import TaskError
from fewshot.store import Store
from fewshot.task_features import read_features
from jclip import download, runtime, weights
from jclip.paths import expand
from report import metrics, result

NAME = "name.png"  # a suffix that --sheet takes
OTHER_TEXTS = {  # options that are text, but no path
    ("bench/accuracy.py", "methods"),
    ("bench/cuda.py", "only"),
    ("bench/label_next.py", "shares"),
    ("bench/parity_reference.py", "open_clip"),
    ("bench/towers.py", "peers"),
}
PROGRAMS = [
    path.relative_to(PROJECT)
    for path in sorted([*PROJECT.glob("*.py"), *PROJECT.glob("demo/*.py"), *PROJECT.glob("bench/*.py")])
    if "ArgumentParser(" in path.read_text(encoding="utf-8") or "cli.parser(" in path.read_text(encoding="utf-8")
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Make tmp_path/home the home folder, and tmp_path/work, which must stay without a folder "~", the current one."""
    runtime.use("cpu")  # before the change: Jittor compiles itself into the home folder of its import
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "home"
    assert not list((tmp_path / "work").iterdir())


class Parser(BaseException):
    """Carries a parser out of a program; no handler of the program takes it."""


def parser_of(program: Path, monkeypatch) -> argparse.ArgumentParser:
    """Return the parser of a program, which goes no further than parsing."""

    def give(parser, *_):
        raise Parser(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", give)
    monkeypatch.setitem(sys.modules, "torch", MagicMock())  # of some programs in bench/
    module = importlib.import_module(".".join(program.with_suffix("").parts))
    with pytest.raises(Parser) as raised:
        module.parse([]) if hasattr(module, "parse") else module.main()
    return raised.value.args[0]


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_option_that_takes_a_path_expands_it(program, home, monkeypatch):
    (home / NAME).write_text("cat\ndog\n")  # --classes takes files that exist
    parser = parser_of(program, monkeypatch)
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    n_paths = 0
    for action in (action for parser in parsers for action in parser._actions):
        if action.nargs == 0 or action.choices or (str(program), action.dest) in OTHER_TEXTS:
            continue
        try:
            value = parser._get_value(action, f"~/{NAME}")
        except argparse.ArgumentError:  # it takes numbers
            continue
        assert value == home / NAME, f"{program}: {action.dest} needs type=jclip.paths.expand"
        n_paths += 1
    assert n_paths


def test_the_programs_are_found():
    assert {
        "convert_weights.py",
        "extract_feature.py",
        "train_adapter.py",
        "predict.py",
        "demo/run.py",
        "bench/cuda.py",
    } <= {str(program) for program in PROGRAMS}


def test_the_commands_read_and_write_in_the_home_folder(tmp_path, run):
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    home.mkdir()
    tasks.write_task(home / "out")
    shutil.copy(PROJECT / "demo/clip.npz", home)
    options = {"cwd": work, "env": {"HOME": str(home)}}
    run("train_adapter.py", "--method", "zero-shot", "--output=~/out", **options)
    shutil.copy(home / "out/val.npz", home / "out/test.npz")
    run("predict.py", "--output=~/out", "--result=~/result.txt", **options)
    run("convert_weights.py", "~/clip.npz", "--out=~/clip.pkl", **options)
    done = run("extract_feature.py", "--data=~/none", "--output=~/out", check=False, **options)
    assert f"error: {home}/none does not exist" in done.stderr
    assert (home / "result.zip").exists() and (home / "clip.pkl").exists() and (home / "out/adapter.npz").exists()
    assert not list(work.iterdir())


@pytest.mark.parametrize("script", ["extract_feature.py", "train_adapter.py", "predict.py"])
def test_a_user_who_does_not_exist_is_one_line_and_no_folder(script, tmp_path, run):
    done = run(script, "--output=~no-such-user/out", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "error: ~no-such-user/out: there is no home folder ~no-such-user" in done.stderr
    assert not list(tmp_path.iterdir())


def test_python_callers_may_name_the_home_folder(home):
    tasks.write_task(home / "out")
    shutil.copy(PROJECT / "demo/clip.npz", home)
    shutil.copytree(PROJECT / "prompts", home / "prompts")
    for name in ("train/a/1.png", "train/b/1.png", "test/1.png"):
        draw(home / "data" / name, 0, 1)
    jclip.load("~/clip.npz", "cpu")
    assert jclip.weights_file(Path("~/clip.npz")) == home / "clip.npz"
    assert len(weights.sha256("~/clip.npz")) == 64 and weights.read("~/clip.npz")
    assert read_features(Path("~/out")).text.names.tolist() == tasks.CLASSES
    artifacts.write("~/copy.npz", artifacts.read("~/out/text.npz", artifacts.Text))
    artifacts.write_together({"~/copy.npz": None})
    assert not (home / "copy.npz").exists()
    assert [str(photo.path) for photo in data.read_task("~/data").test] == [f"{home}/data/test/1.png"]
    assert len(data.read_test("~/data", ["a", "b"])) == len(data.photographs("~/data/test")) == 1
    assert prompts.read(["cat"], "~/prompts").sentences == prompts.read(["cat"]).sentences
    Store("~/store", 4).put([b"k" * 32], np.zeros((1, 4), np.float32))
    assert (home / "store").is_dir()
    metrics.write("~/out", {})
    metrics.record_test("~/out", {"n": 0, "top1": None, "top5": None, "groups": {}, "per_class": {}})
    result.write(Path("~/result.txt"), ["1.jpg 0\n"])
    assert (home / "out/metrics.csv").exists() and (home / "result.zip").exists()
    encoded = Encoder.load("~/clip.npz", "cpu").encode_photos(["~/data/test/1.png", Path("~/data/test/1.png")])
    assert not encoded.failures and np.isfinite(encoded.rows).all()


def test_official_files_lie_in_the_home_folder(home, monkeypatch):
    asked = []
    monkeypatch.setattr(download, "download", lambda url, digest, target: asked.append(target))
    jclip.weights_file("ViT-B/32")
    jclip.weights_file("ViT-B/32", "~/models")
    assert asked == [home / ".cache/clip/ViT-B-32.pt", home / "models/ViT-B-32.pt"]


def test_home_folders_of_users(home):
    me = pwd.getpwuid(0)
    assert expand("~") == home and expand(f"~{me.pw_name}/a") == Path(me.pw_dir, "a")
    assert expand("a/~/b") == Path("a/~/b") and expand(Path("a")) == Path("a")


def test_names_that_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "~/1.png", 0, 1)
    draw(tmp_path / "~copy.png", 0, 1)
    assert expand("~copy.png") == expand("./~copy.png") == tmp_path / "~copy.png"  # no such user, but such a file
    for text in ("./~", "./~/out", "./~no-such-user"):
        assert expand(text) == expand(expand(text)) == tmp_path / text
    assert [path.resolve() for path in data.photographs(".")] == [tmp_path / "~/1.png", tmp_path / "~copy.png"]
    assert all(expand(path) == path for path in data.photographs("."))
    with pytest.raises(TaskError, match="home/out: no such photograph or folder"):
        data.photographs("~/out")
