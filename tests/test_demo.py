"""The demo, whole: what `make demo` shows must be true on every machine."""

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

from demo import world
from jclip import weights
from jclip.architecture import architecture_of


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(folder, {row of the table: its numbers}) of one run."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "demo.run", str(folder)], cwd=PROJECT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    rows = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) > 9 and all(word.replace(".", "", 1).isdigit() for word in words[-9:]):
            rows[" ".join(words[:-9])] = [float(word) for word in words[-9:]]
    return folder, rows


def test_a_few_photographs_help_and_classes_without_any_stay(shown):
    n, zero_shot, _, _, _, tip_f, tip_f_5, blend, _ = shown[1]["all"]
    assert n == 480 and zero_shot >= 40 and tip_f >= zero_shot + 10 and tip_f_5 > tip_f and blend >= tip_f - 1
    n, zero_shot, _, _, _, tip_f, _, blend, _ = shown[1]["classes without shots"]
    assert n == 64 and tip_f >= 0.8 * zero_shot and blend >= 0.8 * zero_shot


def test_each_group_has_its_row(shown):
    assert list(shown[1]) == ["all", "Sign", "Flock", "Thing", "classes with shots", "classes without shots"]
    assert sum(shown[1][group][0] for group in ("Sign", "Flock", "Thing")) == 480


def test_the_contact_sheet_is_drawn(shown):
    with Image.open(shown[0] / "sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.height > 1000
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_the_task_is_new_to_the_demos_clip():
    """Not one of the task's signs and flocks stands among those it was trained on; all their words do."""
    signs, flocks = set(world.signs()), set(world.flocks())
    assert set(world.NEW_SIGNS) < signs and set(world.NEW_FLOCKS) < flocks
    for new, old in (
        (world.NEW_SIGNS, signs - set(world.NEW_SIGNS)),
        (world.NEW_FLOCKS, flocks - set(world.NEW_FLOCKS)),
    ):
        assert {word for name in new for word in name.split()} <= {word for name in old for word in name.split()}


def test_the_demos_weights_are_small_and_say_what_made_them():
    path = PROJECT / "demo/clip.npz"
    assert path.stat().st_size <= 2_000_000
    assert "python demo/train_clip.py" in str(np.load(path)["meta"])
    assert architecture_of(weights.read(path)).vocab_size == 49408


def test_the_same_seed_draws_the_same_photograph():
    things = {**world.signs(), **world.flocks(), **world.things()}
    for name in ("striped star", "hollow drop", "five crosses", "anchor"):
        one, two, other = (
            world.photograph(things[name], "red", np.random.default_rng(seed), *world.SIZE) for seed in (1, 1, 2)
        )
        assert one.size == (96, 72) and one.tobytes() == two.tobytes() != other.tobytes()
