"""Accuracy, confusion and calibration on small cases, and the JSON file."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from report import metrics


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(0, 6),
    classes=st.integers(1, 60),
    k=st.integers(1, 8),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_top_classes_are_those_of_a_stable_sort(rows, classes, k, levels, seed):
    # few levels: many ties
    logits = np.random.default_rng(seed).integers(0, levels, (rows, classes)).astype(np.float32)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    top = metrics.top_classes(logits, k)
    assert top.dtype == np.int64
    np.testing.assert_array_equal(top, expected)


def logits_of(ranked):
    """Return logits that rank the classes of each row as `ranked` (M, C) lists them."""
    return -np.argsort(ranked, axis=1).astype(np.float32)


def test_score_counts_labelled_rows_only():
    ranked = np.array(
        [[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [2, 1, 0, 3, 4, 5]]
    )
    labels = np.array([0, 0, 0, -1, 2])
    figures = metrics.score(logits_of(ranked), labels, ["a", "b", "c", "d", "e", "f"], ["x", "x", "y", "y", "y", "z"])
    assert (figures["n"], figures["top1"], figures["top5"]) == (4, 0.5, 0.75)
    assert figures["groups"]["x"] == {"n": 3, "top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}
    assert figures["groups"]["z"] == {"n": 0, "top1": None, "top5": None}
    assert figures["per_class"]["c"] == {"n": 1, "top1": 1.0, "top5": 1.0}
    json.dumps(figures)


def test_top_5_looks_no_further_than_five():
    figures = metrics.score(logits_of(np.array([[0, 1, 2, 3, 4, 5]])), np.array([5]), list("abcdef"), list("......"))
    assert figures["top5"] == 0


def test_confused_pairs_come_with_the_most_frequent_first():
    pairs = metrics.confused_pairs(np.array([1, 1, 0, 2, 0]), np.array([0, 0, 0, 1, 1]), ["a", "b", "c"])
    assert pairs == [
        {"is": "a", "taken_for": "b", "n": 2},
        {"is": "b", "taken_for": "a", "n": 1},
        {"is": "b", "taken_for": "c", "n": 1},
    ]


def test_calibration_error_of_overconfident_and_of_calibrated_logits():
    labels = np.arange(1000) % 2
    overconfident = np.tile(np.float32([50, 0]), (1000, 1))
    assert metrics.calibration_error(overconfident, labels) == pytest.approx(0.5)
    calibrated = np.tile(np.log(np.float32([0.75, 0.25])), (1000, 1))
    assert metrics.calibration_error(calibrated, np.arange(1000) % 4 // 3) == pytest.approx(0, abs=1e-6)
    assert metrics.calibration_error(overconfident[:0], labels[:0]) is None


def scores_of(*names):
    accuracy = {"n": 1, "top1": 1.0, "top5": 1.0}
    return {**accuracy, "groups": {"=group": accuracy}, "per_class": dict.fromkeys(names, accuracy)}


def test_the_table_opens_in_a_spreadsheet(tmp_path):
    names = ["猫", "T-shirt", "=1+1", "+1", "-1", "@SUM(A1)", "＝1+1", 'a,"b"']
    metrics.write(tmp_path, {"method": "blend", "val": scores_of(*names)})
    content = (tmp_path / "metrics.csv").read_bytes()
    assert content.startswith("\ufeffsplit,method".encode()) and content.count("\ufeff".encode()) == 1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open(encoding="utf-8-sig", newline="")))
    assert [row["name"] for row in rows] == [
        "",
        "'=group",
        "猫",
        "T-shirt",
        "'=1+1",
        "'+1",
        "'-1",
        "'@SUM(A1)",
        "'＝1+1",
        'a,"b"',
    ]
    assert list(json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["val"]["per_class"]) == names
    metrics.record_test(tmp_path, scores_of(*names))  # is written anew, with one mark
    assert (tmp_path / "metrics.csv").read_bytes().count("\ufeff".encode()) == 1


def test_json_is_written_in_utf_8(tmp_path):
    metrics.write_json(tmp_path / "m.json", {"汉字": 0.5})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"汉字": 0.5}
