"""Transductive prediction: the formula, class sizes, and predict.py --transductive."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import predict
from fewshot import artifacts
from fewshot.artifacts import Adapter, Split, Support, Text
from fewshot.rows import softmax
from jclip.features import unit
from methods import transduction
from methods.transduction import _Gaussians, class_sizes, transduce

CLASSES, WIDTH = 20, 48


def task(sizes: np.ndarray, shots: int = 1, val: int = 2, noise: float = 1.0, seed: int = 1):
    """Return (adapter, test, support, val): zero-shot with texts beside the centres, and so many test rows a class."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(CLASSES, WIDTH)))

    def split(counts):
        labels = np.arange(CLASSES).repeat(counts)
        rows = unit(centres[labels] + noise * rng.normal(size=(len(labels), WIDTH)) / WIDTH**0.5)
        return Split(rows, labels, np.array([f"{i}.jpg" for i in range(len(labels))]))

    text = unit(centres + 2 * rng.normal(size=centres.shape) / WIDTH**0.5)
    adapter = Adapter.without_cache("zero-shot", Text(text, np.array([f"class {i}" for i in range(CLASSES)]), 20.0))
    known = split(np.full(CLASSES, shots))
    return (
        adapter,
        split(sizes),
        Support(known.features[:, None], known.labels, known.names),
        split(np.full(CLASSES, val)),
    )


EQUAL = np.full(CLASSES, 30)
UNEQUAL = np.round(60 * 20.0 ** -(np.arange(CLASSES) / (CLASSES - 1))).astype(int)


def top1(logits: np.ndarray, test: Split) -> float:
    return float((logits.argmax(axis=1) == test.labels).mean())


def zero_shot(adapter: Adapter, test: Split) -> np.ndarray:
    return test.features @ adapter.weight.T


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("with_val", [True, False])
def test_test_rows_help_each_other(sizes, with_val):
    adapter, test, support, val = task(sizes)
    before = top1(zero_shot(adapter, test), test)
    used = transduce(adapter, test, support, val if with_val else None)
    assert before < 0.7
    assert top1(used.logits, test) > before + (0.15 if with_val else 0)  # without, the strength stays small
    assert used.strength > 0


def test_balanced_helps_where_it_is_true_and_harms_where_it_is_not():
    for sizes, better in ((EQUAL, True), (UNEQUAL, False)):
        adapter, test, support, val = task(sizes)
        free, balanced = (top1(transduce(adapter, test, support, val, b).logits, test) for b in (False, True))
        assert (balanced > free) == better


def test_test_labels_are_not_looked_at():
    adapter, test, support, val = task(EQUAL)
    expected = transduce(adapter, test, support, val)
    found = transduce(adapter, replace(test, labels=np.full(len(test.labels), -1)), support, val)
    assert np.array_equal(found.logits, expected.logits)


def test_the_part_of_a_row_in_a_mean_is_left_out():
    """The closed form against means that are computed without the row."""
    rng = np.random.default_rng(1)
    rows, share = rng.normal(size=(30, 8)).astype(np.float32), softmax(rng.normal(size=(30, 3))).astype(np.float32)
    totals, sums = share.sum(axis=0) + 1, share.T @ rows + rng.normal(size=(3, 8))
    root = rng.normal(size=(8, 8))
    precision = (root @ root.T).astype(np.float32)
    found = _Gaussians(totals, (sums / totals[:, None]).astype(np.float32), precision).log_likelihood(rows, share)
    for i, c in np.ndindex(share.shape):
        others = totals[c] - share[i, c]
        from_mean = rows[i] - (sums[c] - share[i, c] * rows[i]) / others
        expected = -0.5 * from_mean @ precision @ from_mean / (1 + 1 / others)
        assert found[i, c] == pytest.approx(expected, rel=1e-3)


def test_class_sizes_are_held():
    adapter, test, support, val = task(UNEQUAL)
    rows = transduction._Rows(
        test.features, np.log(softmax(zero_shot(adapter, test))), len(test.labels), adapter.text, support, rho=0
    )
    sums = softmax(rows.logits(0.02)).sum(axis=0)
    assert np.allclose(sums, len(test.labels) / CLASSES, rtol=0.1)


def test_sizes_say_whether_classes_are_equally_frequent():
    found = {}
    for name, sizes in {"equal": EQUAL, "unequal": UNEQUAL}.items():
        adapter, test, _, val = task(sizes, val=8)
        of_test, of_val = (softmax(zero_shot(adapter, split)) for split in (test, val))
        found[name] = class_sizes(of_test, of_val, val.labels)
    assert found["equal"].rho < 0.8 < 1 < found["unequal"].rho
    assert found["unequal"].ratio > transduction.UNEQUAL > found["equal"].ratio
    assert found["unequal"].effective_classes < found["equal"].effective_classes <= CLASSES


def test_few_test_rows_make_no_class_larger():
    """Twenty rows of one class are no twenty rows of twenty classes."""
    adapter, test, support, val = task(np.where(np.arange(CLASSES) == 3, 20, 0))
    used = transduce(adapter, test, support, val)
    assert used.sizes.rho >= 1
    assert top1(used.logits, test) >= top1(zero_shot(adapter, test), test) > 0.4


def test_chunks_do_not_matter(monkeypatch):
    adapter, test, support, val = task(EQUAL)
    expected = transduce(adapter, test, support, val).logits
    monkeypatch.setattr("fewshot.rows.CHUNK", 64 * CLASSES)
    assert np.allclose(transduce(adapter, test, support, val).logits, expected, atol=1e-3)


def test_classes_without_shots_gain():
    adapter, test, support, val = task(EQUAL, shots=2)
    new = np.arange(0, CLASSES, 4)
    kept = ~np.isin(support.labels, new)
    support = Support(support.features[kept], support.labels[kept], support.names[kept])
    is_new = np.isin(test.labels, new)
    before, after = zero_shot(adapter, test), transduce(adapter, test, support, val).logits
    right = [(logits.argmax(axis=1) == test.labels)[is_new].mean() for logits in (before, after)]
    assert right[1] > right[0] + 0.1


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_hardly_any_rows(rows):
    adapter, test, support, val = task(EQUAL)
    few = Split(test.features[:rows], test.labels[:rows], test.names[:rows])
    for shots, known in ((support, val), (Support(support.features[:0], support.labels[:0], support.names[:0]), None)):
        logits = transduce(adapter, few, shots, known).logits
        assert logits.shape == (rows, CLASSES)
        assert np.isfinite(logits).all()


def test_equal_rows_and_a_single_class():
    adapter, test, support, val = task(EQUAL)
    same = replace(test, features=np.repeat(test.features[:1], len(test.labels), axis=0))
    assert np.isfinite(transduce(adapter, same, support, val).logits).all()
    text = Text(adapter.text[:1], adapter.names[:1], 20.0)
    one = Split(test.features, np.zeros(len(test.labels), np.int64), test.names)
    shots = Support(support.features[:1], np.zeros(1, np.int64), support.names[:1])
    assert np.isfinite(transduce(Adapter.without_cache("zero-shot", text), one, shots, None).logits).all()


# ---- the command ----


@pytest.fixture
def output(tmp_path):
    adapter, test, support, val = task(UNEQUAL)
    for name, part in {"adapter": adapter, "test": test, "support": support, "val": val}.items():
        artifacts.write(tmp_path / f"{name}.npz", part)
    return tmp_path


def run(output, *options) -> int:
    return predict.main(["--output", str(output), "--result", str(output / "result.txt"), *options])


def test_predict_writes_what_was_used(output, capsys):
    assert run(output) == 0
    plain = (output / "result.txt").read_text()
    before = json.loads((output / "metrics.json").read_text())["test"]["top1"]
    assert run(output, "--transductive") == 0
    assert "transductive: strength 0." in capsys.readouterr().out
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["test"]["top1"] > before
    assert metrics["transductive"].keys() == {"balanced", "strength", "rho", "ratio", "effective_classes"}
    together = (output / "result.txt").read_text()
    assert [line.split()[0] for line in together.splitlines()] == [line.split()[0] for line in plain.splitlines()]
    assert together != plain
    assert run(output) == 0  # what was used is no longer true
    assert "transductive" not in json.loads((output / "metrics.json").read_text())


def test_balanced_warns_where_the_data_contradict(output, capsys):
    assert run(output, "--transductive", "balanced") == 0
    assert "warning: the classes do not look balanced" in capsys.readouterr().err


def test_without_labels_metrics_say_what_was_used(output):
    test = artifacts.read(output / "test.npz", Split)
    artifacts.write(output / "test.npz", replace(test, labels=np.full(len(test.labels), -1)))
    assert run(output, "--transductive") == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics.keys() == {"transductive"}


def test_files_of_other_weights_are_refused(output, capsys):
    support = artifacts.read(output / "support.npz", Support)
    test = artifacts.read(output / "test.npz", Split)
    artifacts.write(output / "support.npz", replace(support, meta={"weights_sha256": "a" * 64}))
    artifacts.write(output / "test.npz", replace(test, meta={"weights_sha256": "b" * 64}))
    assert run(output, "--transductive") == 1
    assert "made from different weights" in capsys.readouterr().err
    assert not (output / "result.txt").exists()


def test_photographs_are_no_test_set(output, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(output, "--transductive", "balanced", "photo.jpg")
    assert "leave out the photographs" in capsys.readouterr().err


def test_the_report_shows_the_answers_of_result_txt(output):
    assert run(output, "--transductive", "--report", str(output / "report.html"), "--report-photos", "0") == 0
    report = json.loads((output / "report.json").read_text())
    lines = dict(line.split()[:2] for line in (output / "result.txt").read_text().splitlines())
    assert {photo["name"]: str(photo["top"][0][0]) for photo in report["photographs"]} == lines
    assert report["about"]["transductive"]["rho"] > 1
