import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot import metrics


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(0, 6), classes=st.integers(1, 60), k=st.integers(1, 8), levels=st.integers(1, 5), seed=st.integers(0, 99))
def test_top_classes_are_those_of_a_stable_sort(rows, classes, k, levels, seed):
    logits = np.random.default_rng(seed).integers(0, levels, (rows, classes)).astype(np.float32)  # few levels: many ties
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    found = metrics.top_classes(logits, k)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_score_counts_labelled_rows_only():
    ranked = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 3, 2, 1], [0, 1, 2, 3, 4], [2, 1, 0, 3, 4]])
    labels = np.array([0, 0, 0, -1, 2])
    figures = metrics.score(ranked, labels, ["a", "b", "c", "d", "e", "f"], ["x", "x", "y", "y", "y", "z"])
    assert (figures["n"], figures["top1"], figures["top5"]) == (4, 0.5, 0.75)
    assert figures["groups"]["x"] == {"n": 3, "top1": pytest.approx(1 / 3), "top5": pytest.approx(2 / 3)}
    assert figures["groups"]["z"] == {"n": 0, "top1": None, "top5": None}
    assert figures["per_class"]["c"] == {"n": 1, "top1": 1.0, "top5": 1.0}
    json.dumps(figures)


def test_top_5_looks_no_further_than_five():
    figures = metrics.score(np.array([[0, 1, 2, 3, 4, 5]]), np.array([5]), list("abcdef"), list("......"))
    assert figures["top5"] == 0


def test_json_is_written_in_utf_8(tmp_path):
    metrics.write_json(tmp_path / "m.json", {"汉字": 0.5})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"汉字": 0.5}
