"""What the READMEs say: their Python runs, their options are those of the scripts, and both say the same."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT, draw

import convert_weights
import extract_feature
import predict
import train_adapter

ENGLISH, CHINESE = ((PROJECT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
SCRIPTS = {module.__name__: module for module in (convert_weights, extract_feature, train_adapter, predict)}
CLIP, CLASSIFIER, FEATURES = re.findall(r"```python\n(.*?)```", ENGLISH, re.DOTALL)
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


@pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_its_table_has_the_options_of_the_scripts(readme, capsys):
    named, above = {}, ()
    for options, of in re.findall(r"^\| (`-.*?) \| (.*?) \|", readme.replace("\\|", "/"), re.MULTILINE):
        above = re.findall(r"\b(\w+_\w+|predict)\b", of) or above
        for script in above:
            named.setdefault(script, set()).update(re.findall(r"`(--?[\w-]+)", options))
    for script in SCRIPTS:
        with pytest.raises(SystemExit):
            SCRIPTS[script].parse(["--help"])
        options = set(re.findall(r"^  (--[\w-]+|-o)", capsys.readouterr().out, re.MULTILINE))
        assert named[script] == options, script


def test_both_have_the_same_commands_figures_and_links():
    def essence(readme):
        blocks = re.findall(r"```(?:python)?\n.*?```", readme, re.DOTALL)
        commands = re.findall(r"^    (?:python \w+\.py|pip|python3|make)[^#\n]*?(?= *#|$)", readme, re.MULTILINE)
        return blocks, commands, re.findall(r"\]\(((?!README).*?)\)", readme), re.findall(r"`--[\w-]+`", readme)

    english, chinese = essence(ENGLISH), essence(CHINESE)
    assert english[:3] == chinese[:3]
    assert sorted(english[3]) == sorted(chinese[3])


def test_every_document_is_linked_and_every_link_leads_somewhere():
    for readme in (ENGLISH, CHINESE):
        linked = set(re.findall(r"\]\(((?!https:).*?)\)", readme))
        assert all((PROJECT / link).exists() for link in linked)
        assert {f"docs/{path.name}" for path in (PROJECT / "docs").iterdir()} <= linked
