"""The files between the stages: they are read as written, refused in one line when wrong, and never half-written."""

import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import artifacts
from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.errors import TaskError
from fewshot.rows import unit_rows
from jclip.files import atomic_write


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape)
    return unit_rows(rows).astype(np.float32)


def names(n):
    return np.array([f"photo {i}.jpg" for i in range(n)], np.str_)


TEXT = Text(unit(3, 8), names(3), 100.0, {"weights_sha256": "w", "classes_sha256": "c"})
SUPPORT = Support(unit(4, 2, 8), np.array([0, 0, 1, 1]), names(4), {"weights_sha256": "w", "selection_sha256": "s"})
SPLIT = Split(unit(5, 8), np.array([0, 1, 2, -1, 2]), names(5), {"weights_sha256": "w"})
ADAPTER = Adapter(
    "tip-f", names(3), unit(3, 8), 100.0, 2 * unit(4, 8), np.eye(3, dtype=np.float32)[[0, 0, 1, 1]], 1.5, 5.5, {}
)


@pytest.mark.parametrize("artifact", [TEXT, SUPPORT, SPLIT, ADAPTER])
def test_what_is_written_is_read(tmp_path, artifact):
    artifacts.write(tmp_path / "a.npz", artifact)
    loaded = artifacts.read(tmp_path / "a.npz", type(artifact))
    for name, value in vars(artifact).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    first = (tmp_path / "a.npz").read_bytes()
    artifacts.write(tmp_path / "a.npz", loaded)
    assert (tmp_path / "a.npz").read_bytes() == first


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 6),
    v=st.integers(1, 3),
    d=st.integers(1, 9),
    text=st.text(
        st.characters(
            blacklist_categories=["Cs"], blacklist_characters=[chr(n) for n in (*range(32), 0x7F, 0x85, 0x2028, 0x2029)]
        ),
        max_size=20,
    ),
)
def test_any_support_survives_the_round_trip(tmp_path_factory, n, v, d, text):
    path = tmp_path_factory.mktemp("a") / "support.npz"
    support = Support(unit(n, v, d), np.arange(n), np.array([f"{text}{i}" for i in range(n)], np.str_), {"note": text})
    artifacts.write(path, support)
    loaded = artifacts.read(path, Support)
    np.testing.assert_array_equal(loaded.features, support.features)
    assert loaded.names.tolist() == support.names.tolist() and loaded.meta == support.meta


def test_a_file_made_by_hand_is_accepted(tmp_path):
    np.savez(tmp_path / "text.npz", features=unit(3, 8).astype(np.float16), names=names(3))
    loaded = artifacts.read(tmp_path / "text.npz", Text)
    assert loaded.scale == 100 and loaded.meta == {} and loaded.features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(loaded.features, axis=1), 1, atol=1e-6)


def split_arrays(**changes):
    content = dict(features=SPLIT.features, labels=SPLIT.labels, names=SPLIT.names, meta=np.array("{}"))
    content.update(changes)
    return {name: value for name, value in content.items() if value is not None}


@pytest.mark.parametrize(
    "content, message",
    [
        (split_arrays(labels=None), "holds no array 'labels'"),
        (split_arrays(labels=SPLIT.labels[:4]), r"labels is of shape \(4,\), expected \(M=5\)"),
        (split_arrays(features=SPLIT.features[None]), r"features is of shape \(1, 5, 8\), expected \(M, D\)"),
        (split_arrays(labels=SPLIT.labels + 0.5), "labels is of dtype float64, expected int64"),
        (split_arrays(names=np.arange(5)), "names is of dtype int64, expected text"),
        (split_arrays(features=SPLIT.features * 2), "row of L2 norm 2, expected 1"),
        (split_arrays(features=np.where(np.eye(5, 8) > 0, np.nan, SPLIT.features)), "features holds NaN"),
        (split_arrays(meta=np.array("[]")), "meta is list"),
        (split_arrays(meta=np.array("{")), "damaged"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "val.npz", **content)
    with pytest.raises(TaskError, match=message) as raised:
        artifacts.read(tmp_path / "val.npz", Split)
    assert str(tmp_path / "val.npz") in str(raised.value) and "\n" not in str(raised.value)


def test_pickled_objects_are_not_opened(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    np.savez(tmp_path / "val.npz", **split_arrays(names=np.array([Harm()] * 5, object)))
    (tmp_path / "test.npz").write_bytes(pickle.dumps(Harm()))
    for name in ("val.npz", "test.npz"):
        with pytest.raises(TaskError, match="damaged"):
            artifacts.read(tmp_path / name, Split)
    assert not (tmp_path / "harm").exists()


def test_a_truncated_or_absent_file_is_refused(tmp_path):
    artifacts.write(tmp_path / "test.npz", SPLIT)
    whole = (tmp_path / "test.npz").read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "test.npz").write_bytes(whole[:kept])
        with pytest.raises(TaskError, match="test.npz: damaged.*run extract_feature.py again"):
            artifacts.read(tmp_path / "test.npz", Split)
    with pytest.raises(TaskError, match="no .*adapter.npz; run train_adapter.py first"):
        artifacts.read(tmp_path / "adapter.npz", Adapter)


def changed(artifact, **changes):
    return type(artifact)(**{**vars(artifact), **changes})


def test_files_of_one_task_go_together():
    artifacts.check_together(TEXT, SUPPORT, SPLIT)
    artifacts.check_together(TEXT, changed(SUPPORT, meta={}), changed(SPLIT, meta={"weights_sha256": "w"}))
    artifacts.check_together(ADAPTER, SPLIT)


@pytest.mark.parametrize(
    "together, message",
    [
        ((TEXT, changed(SUPPORT, meta={"weights_sha256": "x"})), "text and support were made from different weights"),
        (
            (TEXT, SUPPORT, changed(SPLIT, meta={"selection_sha256": "t"})),
            "support and split were made from different selection",
        ),
        ((TEXT, changed(SUPPORT, features=unit(4, 2, 9))), "width 8, support of width 9"),
        ((TEXT, changed(SUPPORT, labels=np.array([0, 0, 1, 3]))), "label 3, but there are 3 classes"),
        ((TEXT, changed(SUPPORT, labels=np.array([0, 0, 1, -1]))), "label -1"),
        ((ADAPTER, changed(SPLIT, labels=np.array([0, 1, 2, -2, 2]))), "label -2"),
    ],
)
def test_files_of_different_tasks_are_refused_together(together, message):
    with pytest.raises(TaskError, match=message):
        artifacts.check_together(*together)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a") as file:
        file.write(b"new, but not all of it")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    code = """
import os, sys
from jclip.files import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"new" * 10**6)
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "a").read_text() == "old"


def test_a_written_file_has_the_usual_permissions(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_meta_is_json_that_anyone_can_read(tmp_path):
    artifacts.write(tmp_path / "text.npz", TEXT)
    assert json.loads(str(np.load(tmp_path / "text.npz")["meta"])) == TEXT.meta
