"""What README and docs/usage say: their Python runs, their commands and options are those of the program, the files
they name are there, and both languages say the same."""

import os
import re
import shlex
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import PROJECT, draw

import convert_weights
import extract_feature
import predict
import train_adapter

README, README_ZH = PROJECT / "README.md", PROJECT / "README.zh.md"
USAGE, USAGE_ZH = PROJECT / "docs/usage.md", PROJECT / "docs/usage.zh.md"
DESIGN = PROJECT / "docs/design.md"
TEXTS = {path: path.read_text(encoding="utf-8") for path in (README, README_ZH, USAGE, USAGE_ZH, DESIGN)}
PACKAGES = ("jclip", "jclip/weights", "fewshot", "fewshot/cluster", "methods", "report")
LANGUAGES = pytest.mark.parametrize("readme, usage", [(README, USAGE), (README_ZH, USAGE_ZH)], ids=["en", "zh"])
SCRIPTS = {module.__name__: module for module in (convert_weights, extract_feature, train_adapter, predict)}
CLIP, CLASSIFIER, FEATURES = re.findall(r"```python\n(.*?)```", TEXTS[USAGE], re.DOTALL)
MINE = """
import numpy as np
rng = np.random.default_rng(0)
def unit(*shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)
text, class_names = unit(3, 8), np.array(["a", "b", "c"])
shots, shot_labels, shot_names = unit(6, 8), np.arange(6) % 3, np.array(list("uvwxyz"))
val, val_labels, val_names = unit(9, 8), np.arange(9) % 3, np.array(list("abcdefghi"))
test, test_labels, test_names = unit(4, 8), np.arange(4) % 3, np.array(list("qrst"))
"""


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_its_python_on_photographs_runs(trained):
    draw(trained / "photo.jpg", 1, 1)
    done = python(CLIP, trained)
    assert done.returncode == 0, done.stderr
    assert np.fromstring(done.stdout.strip("[] \n"), sep=" ").sum() == pytest.approx(1, abs=1e-4)
    done = python(CLASSIFIER, trained)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split("\n")) - {""}) == 5


def test_its_python_on_features_runs(tmp_path, run):
    (tmp_path / "output").mkdir()
    done = python(MINE + FEATURES, tmp_path)
    assert done.returncode == 0, done.stderr
    run("train_adapter.py", "--method", "gda", cwd=tmp_path)
    assert "labelled photographs" in run("predict.py", cwd=tmp_path).stdout
    assert [line.split()[0] for line in (tmp_path / "result.txt").read_text().splitlines()] == list("qrst")


@LANGUAGES
def test_the_table_has_the_options_of_the_commands(readme, usage, capsys):
    named, above = {}, ()
    for options, of in re.findall(r"^\| (`-.*?) \| (.*?) \|", TEXTS[usage].replace("\\|", "/"), re.MULTILINE):
        above = re.findall(r"\b(\w+_\w+|predict)\b", of) or above
        for script in above:
            named.setdefault(script, set()).update(re.findall(r"`(--?[\w-]+)", options))
    for script in SCRIPTS:
        with pytest.raises(SystemExit):
            SCRIPTS[script].parse(["--help"])
        options = set(re.findall(r"^  (--[\w-]+|-o)", capsys.readouterr().out, re.MULTILINE))
        assert named[script] == options, script


@LANGUAGES
def test_the_table_has_the_methods(readme, usage, capsys):
    with pytest.raises(SystemExit):
        train_adapter.parse(["--help"])
    methods = re.search(r"--method\s+\{(.*?)\}", capsys.readouterr().out)[1].split(",")
    rows = re.findall(r"^\| (`[a-z].*?) \|", TEXTS[readme], re.MULTILINE)
    assert re.findall(r"`([\w-]+)`", " ".join(rows)) == methods


def commands(text):
    """The commands of a document's indented blocks and code spans, without comments; several may be in a line."""
    blocks = re.findall(r"^    ((?:python \w+\.py|pip|python3|make)[^#\n]*?)(?= *#|$)", text, re.MULTILINE)
    return blocks, [*blocks, *re.findall(r"`((?:python |make )[^`]*)`", text)]


@LANGUAGES
def test_every_command_is_one_that_the_program_takes(readme, usage):
    found = commands(TEXTS[readme] + TEXTS[usage])[1]
    assert len(found) > 15
    for command in (part for line in found for part in line.split("&&")):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (PROJECT / "Makefile").read_text(), re.MULTILINE), command
        elif words[:2] == ["python", "-m"]:
            assert (PROJECT / f"{words[2].replace('.', '/')}.py").exists(), command
        elif words[0] == "python":
            SCRIPTS[words[1].removesuffix(".py")].parse(words[2:])  # exits where an option or a value is wrong
        elif words[:3] == ["pip", "install", "-r"]:
            assert (PROJECT / words[3]).exists(), command


def essence(text):
    """What two languages have in common: blocks of code, commands, links, options, files."""
    links = [link.replace(".zh", "") for link in re.findall(r"\]\((.*?)\)", text) if "README" not in link]
    return (
        re.findall(r"```(?:python)?\n.*?```", text, re.DOTALL),
        commands(text)[0],
        links,
        sorted(re.findall(r"`--[\w-]+`", text)),
        tree(text),
        re.findall(r"^#+", text, re.MULTILINE),
    )


def tree(text):
    """Paths that a document's tree of the project names, in order; it starts with the line of the four commands."""
    block = re.search(r"^( *)convert_weights\.py  .*\n(?:\1 *\S.*\n)+", text, re.MULTILINE)
    paths, folders = [], []
    for line in textwrap.dedent(block[0]).splitlines() if block else ():
        depth = (len(line) - len(line.lstrip())) // 4
        names = re.findall(r"[\w.-]+/(?=\s|$)|[\w-]+\.(?:py|h|cuh)\b", line)
        above, folders = folders[:depth], folders[:depth] + [name for name in names[:1] if name.endswith("/")]
        paths += ["".join(above if name.endswith("/") else folders) + name for name in names]
    return paths


@pytest.mark.parametrize("path", [README, DESIGN], ids=lambda path: path.name)
def test_every_file_of_the_tree_is_there(path):
    named = tree(TEXTS[path])
    assert len(named) > 20 and [name for name in named if not (PROJECT / name).exists()] == []


def test_the_design_names_every_module():
    folders = [PROJECT, *(PROJECT / name for name in PACKAGES)]
    modules = {path.relative_to(PROJECT).as_posix() for folder in folders for path in folder.glob("*.py")}
    packages = {f"{folder.relative_to(PROJECT).as_posix()}/__init__.py" for folder in folders[1:]}
    assert modules - packages - {"setup.py"} - set(tree(TEXTS[DESIGN])) == set()


def test_every_test_that_a_document_names_is_there():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "tests").glob("*.py"))
    for path in (PROJECT / "docs").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        files = re.findall(r"`(?:tests/)?(test_\w+\.py)`", text)
        assert [name for name in files if not (PROJECT / "tests" / name).exists()] == [], path.name
        missing = [name for name in re.findall(r"`(test_\w+)…`", text) if f"def {name}" not in tests]
        assert missing == [], path.name


def test_both_languages_have_the_same_commands_figures_files_and_links():
    assert essence(TEXTS[README]) == essence(TEXTS[README_ZH])
    assert essence(TEXTS[USAGE]) == essence(TEXTS[USAGE_ZH])


def test_every_document_is_linked_and_every_link_leads_somewhere():
    documents = {f"docs/{path.name}" for path in (PROJECT / "docs").iterdir()}
    for path, other_language in ((README, "docs/usage.zh.md"), (README_ZH, "docs/usage.md")):
        assert documents - {other_language} <= links(path)
    for path in [*TEXTS, *(PROJECT / "docs").glob("*.md")]:
        assert [link for link in links(path) if not (path.parent / link).exists()] == [], path.name


def links(path):
    return set(re.findall(r"\]\(((?!https:).*?)\)", path.read_text(encoding="utf-8")))
