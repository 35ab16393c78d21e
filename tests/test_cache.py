"""The cache on top of the blend (methods/cache.py), and the optimiser of its regressions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimise
from scipy.optimize import rosen, rosen_der
from tasks import make_task, names, train

import methods
import tip_adapter_utils as tip
from fewshot.artifacts import Split, Support, Text
from fewshot.rows import log_softmax, one_hot, shot_rows
from jclip.features import unit
from methods import Settings, cache
from methods.folds import make_folds
from methods.lbfgs import minimise
from methods.linear import Linear

CPU = Settings(device="cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def make_split_classes(rng, classes=6, shots=8, rows=30, width=16):
    """Classes of two groups of photographs in opposite directions, which no linear classifier can tell apart."""
    text = unit(rng.normal(size=(classes, width)))
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0][:classes]

    def around(n):
        labels = np.arange(classes).repeat(n)
        sign = np.where(np.arange(len(labels)) % 2, 1, -1)[:, None]
        return unit(sign * axes[labels] + 0.1 * rng.normal(size=(len(labels), width))).astype(np.float32), labels

    (shot, of_shots), (val, of_val), (test, of_test) = around(shots), around(rows), around(rows)
    return (
        Text(text.astype(np.float32), names("class", classes), 10.0),
        Support(shot[:, None], of_shots, names("shot", len(of_shots))),
        Split(val, of_val, names("val", len(of_val))),
        Split(test, of_test, names("test", len(of_test))),
    )


# ---- what it learns, and what it does not ----


@pytest.mark.parametrize("validated", [True, False])
def test_the_cache_knows_what_no_linear_classifier_can(rng, jt, validated):
    text, support, val, test = make_split_classes(rng)
    adapter, chosen = train("blend", text, support, val if validated else None, CPU)
    linear = test.features @ adapter.weight.T + adapter.bias
    logits = tip.predict_logits(adapter, test.features)
    assert chosen["alpha"] == adapter.alpha > 0 and chosen["beta"] == adapter.beta == cache.BETA
    assert chosen["epoch"] in cache.SCORED_EPOCHS and len(adapter.keys) == len(support.labels)
    assert (logits.argmax(axis=1) == test.labels).mean() > (linear.argmax(axis=1) == test.labels).mean() + 0.1


def test_single_shots_have_no_cache_and_jittor_is_not_needed(rng):
    code = (
        "import sys, numpy as np; sys.path.insert(0, 'tests'); from tasks import make_task, train;"
        "from methods import Settings;"
        "adapter, chosen = train('blend', *make_task(np.random.default_rng(1), shots=1)[:3], Settings(device='cpu'));"
        "assert not len(adapter.keys) and chosen['alpha'] == adapter.alpha == 0 and 'epoch' not in chosen;"
        "assert 'jittor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_task_that_is_too_large_has_no_cache(rng, jt, monkeypatch):
    text, support, val, _ = make_split_classes(rng)
    monkeypatch.setattr(cache, "MAX_LOGITS", support.features.shape[0] * len(text.names) - 1)
    adapter, chosen = train("blend", text, support, val, CPU)
    assert not len(adapter.keys) and chosen["alpha"] == 0


def test_more_rows_than_the_limit_are_drawn_by_the_seed(rng, jt, monkeypatch):
    text, support, val, test = make_split_classes(rng)
    monkeypatch.setattr(cache, "MAX_AFFINITIES", 30 * len(support.labels))  # 30 of 48 rows to learn from
    one, other = (train("blend", text, support, val, CPU)[0] for _ in range(2))
    assert one.alpha > 0 and one.keys.tobytes() == other.keys.tobytes()


def test_unequal_numbers_of_shots_and_a_class_of_one_are_no_obstacle(rng, jt):
    text, support, val, test = make_split_classes(rng)
    kept = ~((support.labels == 0) & (np.arange(48) > 0)) & ~((support.labels == 1) & (np.arange(48) > 10))
    few = Support(support.features[kept], support.labels[kept], support.names[kept])
    adapter, _ = train("blend", text, few, val, CPU)
    assert np.isfinite(adapter.keys).all() and len(adapter.keys) == len(few.labels)
    np.testing.assert_allclose(adapter.values.sum(axis=0), 1, rtol=1e-6)


def test_classes_without_shots_get_the_mean_evidence_of_the_others(rng):
    labels, is_base = np.array([0, 0, 2, 2, 2]), np.array([True, False, True, False])
    values = cache._values(labels, is_base)
    np.testing.assert_allclose(values[:, 1], values[:, [0, 2]].mean(axis=1))
    np.testing.assert_allclose(values[:, 3], values[:, 1])
    np.testing.assert_allclose(values[:, [0, 2]], one_hot(labels, 4)[:, [0, 2]] / [2, 3])


def test_refit_keeps_the_cache(rng, jt):
    text, support, val, _ = make_task(rng)
    outcome = methods.train("blend", text, support, val, CPU)
    refitted = outcome.refit(text, support, val)
    assert outcome.adapter.alpha > 0 and refitted.keys.tobytes() == outcome.adapter.keys.tobytes()
    assert refitted.weight.tobytes() != outcome.adapter.weight.tobytes()


# ---- its parts ----


def test_the_base_logits_of_a_shot_come_from_a_fold_without_it(rng):
    _, support, _, _ = make_task(rng, shots=3)
    folds = make_folds(support, None).folds
    classifiers = [Linear(np.zeros((12, 24), np.float32), np.full(12, i, np.float32)) for i in range(len(folds))]
    rows = cache.left_out_rows(support, folds, classifiers)
    assert sorted(rows.shots) == sorted(np.arange(36).repeat(2))
    for fold, shot, row in zip(rows.logits[:, 0].astype(int), rows.shots, rows.features):
        assert not folds[fold].shots[shot] and (row == support.features[shot]).all(axis=1).any()
    np.testing.assert_array_equal(rows.labels, support.labels[rows.shots])


def test_a_gain_must_exceed_its_standard_error(rng):
    labels, is_base = np.arange(4).repeat(100), np.ones(4, bool)
    keys = np.eye(4, dtype=np.float32)
    features = unit(keys[labels] + 0.3 * rng.normal(size=(400, 4))).astype(np.float32)
    told, untold = cache._Gains(), cache._Gains()
    base = rng.normal(size=(400, 4)).astype(np.float32)
    sure = 9 * one_hot(labels, 4)  # nothing is left over for the cache
    for gains, logits in ((told, base), (untold, sure)):
        gains.add(cache.SCORED_EPOCHS[0], cache.Rows(features, labels, logits, labels), tip.Cache(keys, keys), is_base)
    wrong = cache._Gains()
    shuffled = cache.Rows(features, rng.permutation(labels), base, labels)
    wrong.add(cache.SCORED_EPOCHS[0], shuffled, tip.Cache(keys, keys), is_base)
    assert told.best() == (cache.SCORED_EPOCHS[0], cache.ALPHAS[-1]) and wrong.best() == (0, 0.0)
    assert cache._Gains().best() == (0, 0.0)


def tune(rows, text, keys, values, **options):
    return [
        epoch.keys.numpy()
        for epoch in tip.fine_tune(
            rows, text, tip.Cache(keys, values), epochs=2, lr=0.01, seed=1, device="cpu", **options
        )
    ]


def test_base_logits_take_the_place_of_zero_shot(rng, jt):
    text, support, _, _ = make_task(rng)
    rows = support.features[:, 0], support.labels
    keys, values = shot_rows(support.features), one_hot(support.labels, 12)
    zero_shot = text.scale * (rows[0] @ text.features.T)
    usual = tune(rows, text, keys, values)
    np.testing.assert_array_equal(tune(rows, text, keys, values, base_logits=zero_shot), usual)
    assert np.abs(tune(rows, text, keys, values, base_logits=zero_shot[::-1].copy())[1] - usual[1]).max() > 1e-4


def test_a_row_does_not_see_its_own_key(rng, jt):
    text, support, _, _ = make_task(rng)
    keys, values = shot_rows(support.features), one_hot(support.labels, 12)
    rows = keys[:1], support.labels[:1]  # a single row, which is key 0
    start, tuned = keys, tune(rows, text, keys, values, own_keys=np.array([0]))[1]
    decay = (tuned[0] / start[0]).mean()
    assert 0.999 < decay <= 1
    np.testing.assert_allclose(tuned[0], start[0] * decay, rtol=1e-5)  # moved by weight decay alone
    assert np.abs(tuned[1] - start[1]).max() > 1e-3
    seen = tune(rows, text, keys, values)[1]
    assert np.abs(seen[0] - start[0]).max() > 1e-3


def test_the_gradient_of_the_means_is_that_of_their_formula(rng, jt):
    """One step of AdamW goes against the sign of the gradient; that sign is compared with finite differences."""
    text, support, _, _ = make_task(rng, classes=3, shots=3)
    labels, n = support.labels, len(support.labels)
    keys, values = shot_rows(support.features), one_hot(labels, 3)
    base = rng.normal(size=(n, 3)).astype(np.float32)

    def loss(k):
        affinity = np.exp(-(1 - keys.astype(np.float64) @ k.T)) * (1 - np.eye(n))
        counts = values.sum(axis=0) - values
        logits = base + 4 * affinity @ values / counts
        return -log_softmax(logits)[np.arange(n), labels].mean()

    moved = tune((keys, labels), text, keys, values, base_logits=base, own_keys=np.arange(n))[0] - keys
    for key, column in ((0, 3), (4, 7), (8, 20), (2, 11)):
        nudge = np.zeros_like(keys, dtype=np.float64)
        nudge[key, column] = 1e-5
        slope = (loss(keys + nudge) - loss(keys - nudge)) / 2e-5
        assert np.sign(moved[key, column]) == -np.sign(slope) or abs(slope) < 1e-5


# ---- the optimiser of the regressions ----


def test_the_optimiser_finds_the_minimum():
    calls = []
    found = minimise(lambda x: (rosen(x), rosen_der(x)), np.zeros(6), 200, lambda: calls.append(1))
    np.testing.assert_allclose(found, np.ones(6), atol=1e-4)
    assert 10 < len(calls) < 100


def test_the_optimiser_goes_as_far_as_that_of_scipy(rng):
    matrix = rng.normal(size=(40, 30))
    target = rng.normal(size=40)

    def objective(x):
        rest = matrix @ x - target
        return float(np.log1p(rest**2).mean()), 2 * matrix.T @ (rest / (1 + rest**2)) / len(rest)

    for iterations in (5, 25):
        theirs = scipy_minimise(
            objective, np.zeros(30), jac=True, method="L-BFGS-B", options={"maxiter": iterations}
        ).fun
        assert objective(minimise(objective, np.zeros(30), iterations))[0] < 1.1 * theirs


def test_the_optimiser_stops_at_nan_and_where_it_is_flat():
    start = np.ones(3, np.float32)
    for value, gradient in ((np.nan, np.full(3, np.nan, np.float32)), (1.0, np.zeros(3, np.float32))):
        np.testing.assert_array_equal(minimise(lambda x, v=value, g=gradient: (v, g), start, 5), start)
