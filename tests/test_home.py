"""Homes in which Jittor cannot keep what it compiles: none, one that cannot be written, one with an awkward name."""

import os
from pathlib import Path

import pytest
from conftest import PROJECT, draw, python

from jclip import ClipError, cuda, download, jittor_cache

USE = "from jclip import runtime; print(runtime.use('cpu'))"
NOBODY = """
import os, pwd
del os.environ["HOME"]
def unknown(user):
    raise KeyError(f"getpwuid(): uid not found: {user}")
pwd.getpwuid = unknown
"""
REAL_HOME = str(Path.home())


def homes(folder: Path) -> dict[str, str]:
    """Make homes that root cannot write, either, and return them by the kind of damage."""
    (folder / "file").write_text("")
    (folder / "file in it").mkdir()
    (folder / "file in it/.cache").write_text("")
    (folder / "dead link").mkdir()
    (folder / "dead link/.cache").symlink_to(folder / "nowhere/cache")
    (folder / "cache of a file").joinpath(".cache/jittor").mkdir(parents=True)
    (folder / "cache of a file/.cache/jittor/jt1.3.11").write_text("")
    return {path.name: str(path) for path in folder.iterdir()} | {"below a device": "/dev/null/home", "proc": "/proc/1"}


KINDS = ("file", "file in it", "dead link", "cache of a file", "below a device", "proc")


@pytest.mark.parametrize("kind", KINDS)
def test_a_home_that_cannot_be_written_is_one_line_with_the_remedy(tmp_path, kind):
    done = python(USE, HOME=homes(tmp_path)[kind])
    *_, last = done.stderr.splitlines()
    assert done.returncode == 1 and last.startswith("jclip.errors.ClipError: cannot write "), done.stderr
    assert "; set HOME to a folder that can be written" in last


def test_no_home_at_all_is_one_line_with_the_remedy():
    last = python(NOBODY + USE).stderr.splitlines()[-1]
    assert "no home folder: HOME is not set" in last and "; set HOME to a folder that can be written" in last


@pytest.mark.parametrize("home", ["/dev/null/home", None])
def test_a_command_says_so_in_its_last_line_and_writes_nothing(tiny_weights, tmp_path, home):
    draw(tmp_path / "photo.jpg", 0, 0)
    before = set(tmp_path.iterdir())
    setup = NOBODY if home is None else ""
    done = python(
        f"""{setup}
import os, runpy, sys
os.chdir({str(tmp_path)!r})
sys.argv = ["predict.py", "photo.jpg", "--classes", "a, b", "--weights", {str(tiny_weights)!r}]
sys.path.insert(0, {str(PROJECT)!r})
runpy.run_path({str(PROJECT / "predict.py")!r}, run_name="__main__")
""",
        **({"HOME": home} if home else {}),
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "set HOME to a folder that can be written" in line and not done.stdout
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("setup", ["", NOBODY])
def test_jittor_home_serves_where_home_cannot_be_written(setup):
    done = python(
        f"{setup}import jclip, jittor, os\n{USE}\nprint(os.environ.get('HOME'))",
        HOME="/dev/null/home",
        JITTOR_HOME=REAL_HOME,
    )
    assert done.stdout.split() == ["cpu", "None" if setup else "/dev/null/home"], done.stderr


def test_a_jittor_home_that_cannot_be_written_is_what_the_message_names(tmp_path):
    done = python(USE, HOME=str(tmp_path), JITTOR_HOME="/dev/null/home")
    assert "; set JITTOR_HOME to a folder that can be written, e.g. JITTOR_HOME=" in done.stderr.splitlines()[-1]


def test_the_compiled_core_is_found_where_jittor_home_is(tmp_path):
    """Without that, every import would announce a compilation."""
    for environment in ({"JITTOR_HOME": REAL_HOME}, {}):  # Jittor notes the first one in HOME
        done = python("import logging; logging.basicConfig(level=20)\n" + USE, HOME=str(tmp_path), **environment)
        assert done.stdout.strip() == "cpu" and "compiles" not in done.stderr, done.stderr


def test_an_empty_home_is_the_root_folder(monkeypatch):
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(jittor_cache, "_make_cache", lambda *_: None)
    assert jittor_cache.folder() in (Path("/.cache/jittor"), Path.cwd() / ".cache/jittor")  # Python 3.9: the latter


@pytest.mark.parametrize("character", jittor_cache.FORBIDDEN)
def test_a_name_that_jittor_cannot_quote_is_one_line(tmp_path, monkeypatch, character):
    monkeypatch.setenv("HOME", str(tmp_path / f"a{character}b"))
    with pytest.raises(ClipError, match="Jittor cannot compile in .* in its name; set HOME .*, e.g. HOME=/tmp/me"):
        jittor_cache.folder()


@pytest.mark.slow
def test_spaces_and_letters_of_other_languages_work(tmp_path):
    """One name has both, since Jittor compiles its core for each."""
    name = "é 日本"
    (tmp_path / name).mkdir()
    done = python(
        f"""
import logging, jclip, numpy as np
from jclip import compiling, jittor_cache, progress
logging.basicConfig(level=logging.INFO, format="%(message)s")
progress.INTERVAL = 10
model, _ = jclip.load({str(PROJECT / "demo/clip.npz")!r}, device="cpu")
print(compiling.N_FILES - jittor_cache.count_objects(since=0))
print(model.encode_image(np.zeros((2, 3, 48, 48), np.float32)).shape)
""",
        HOME=str(tmp_path / name),
        nvcc_path="",
    )
    assert done.stdout.splitlines()[-2:] == ["0", "[2,96,]"], done.stderr
    first, *lines = done.stderr.splitlines()
    assert first == "Jittor compiles its core on its first use: about 3 minutes, once."
    assert sum(line.startswith("compiling Jittor: ") for line in lines) >= 4


def test_official_weights_and_cudas_folder_need_a_home_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/dev/null/home")
    with pytest.raises(ClipError, match=r"^cannot write /dev/null/home/\.cache/clip \(.*\); set HOME"):
        download.official("ViT-B/32")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    toolkit = cuda.Toolkit(tmp_path / "bin/nvcc", (12, 0), (), (), {})
    for fails in (lambda: download.official("ViT-B/32"), lambda: cuda.make(toolkit, cuda.Gpu("GPU", 90, (12, 0)))):
        with pytest.raises(ClipError, match="no home folder: HOME is not set"):
            fails()
    assert "~" not in os.listdir()
