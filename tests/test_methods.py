"""The default method and its parts, and the published methods beside it, on tasks small enough to know the answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tasks import WIDTH, make_task, train

import methods
from fewshot.artifacts import Split, Support
from fewshot.rows import class_sums, has_shots, index_in_class, one_hot, shot_rows, subset
from fewshot.support import add_validation_rows, redraw
from jclip.features import unit
from methods import METHODS, Settings, blend, experts, gaussian, offsets, published
from methods.folds import Fold, learn_from_all_shots, make_folds
from methods.linear import Linear, linear_adapter
from methods.regression import _loss, cross_entropy, regressions
from tip_adapter_utils import predict_logits

CPU = Settings(epochs=3, device="cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def accuracy(adapter, split, rows=slice(None)):
    return float((predict_logits(adapter, split.features[rows]).argmax(axis=1) == split.labels[rows]).mean())


# ---- text-anchored regression ----


def test_the_gradient_is_that_of_the_loss(rng):
    rows, labels = unit(rng.normal(size=(9, 5))).astype(np.float64), rng.integers(0, 4, 9)
    anchor, delta = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    root = rng.normal(size=(5, 5))
    arguments = rows, labels, anchor, root @ root.T / 10, 0.3
    _, gradient = _loss(delta, *arguments)
    for index in np.ndindex(delta.shape):
        nudge = np.zeros_like(delta)
        nudge[index] = 1e-6
        slope = (_loss(delta + nudge, *arguments)[0] - _loss(delta - nudge, *arguments)[0]) / 2e-6
        assert gradient[index] == pytest.approx(slope, abs=1e-5)


def test_the_loss_bounds_that_of_noisy_rows_closely(rng):
    rows, labels, weight = unit(rng.normal(size=(40, 5))), rng.integers(0, 4, 40), 2 * rng.normal(size=(4, 5))
    covariance = 0.002 * np.eye(5)
    noisy = rows[:, None] + rng.multivariate_normal(np.zeros(5), covariance, (40, 4000))
    sampled, _ = cross_entropy(noisy.reshape(-1, 5) @ weight.T, labels.repeat(4000))
    bound, _ = _loss(np.zeros_like(weight), rows, labels, weight, covariance, 0.0)
    plain, _ = cross_entropy(rows @ weight.T, labels)
    assert plain < sampled < bound < sampled + 0.03


def test_a_strong_pull_leaves_the_anchor_and_a_weak_one_fits_the_rows(rng):
    text, support, _, _ = make_task(rng)
    start = text.scale * text.features
    rows = shot_rows(support.features)
    strong, weak = (
        regressions(rows, support.labels, start, np.zeros((WIDTH, WIDTH), np.float32), [strength], 100)[0]
        for strength in (1e4, 1e-5)
    )
    np.testing.assert_allclose(strong, start, atol=1e-3)
    assert ((rows @ weak.T).argmax(axis=1) == support.labels).all()


# ---- Gaussian discriminants ----


def test_the_discriminant_is_that_of_scikit_learn(rng):
    labels = np.arange(5).repeat(30)
    rows = (rng.normal(size=(5, 8))[labels] + rng.normal(size=(150, 8))).astype(np.float32)
    means, counts = gaussian.class_means(rows, labels, 5)
    residuals = rows - means[labels]
    weight, bias = gaussian.discriminant(means, residuals.T @ residuals / len(rows))
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(5, 0.2)).fit(rows, labels).decision_function(rows)
    ours = rows @ weight.T + bias
    np.testing.assert_allclose(ours - ours[:, :1], theirs - theirs[:, :1], atol=2e-3)
    assert counts.tolist() == [30] * 5


def test_a_text_map_finds_a_linear_relation_and_knows_what_it_has_not_seen(rng):
    text, matrix = rng.normal(size=(30, 6)), rng.normal(size=(6, 6))
    text[:, 5] = 0
    found = gaussian.TextMap(text, 1e-6)
    np.testing.assert_allclose(found.predict(text @ matrix + 3, text), text @ matrix + 3, atol=1e-3)
    unseen = np.eye(6)[[5]]
    assert found.novelty(unseen) > 1e4 * found.novelty(text).max()


def test_own_novelty_is_that_of_really_leaving_a_text_out(rng):
    text = unit(rng.normal(size=(12, 6)))
    whole = gaussian.TextMap(text, 0.5)
    for i, novelty in enumerate(whole.leave_one_out_novelty(text)):
        rest = np.delete(text, i, axis=0) - whole.centre
        left = np.linalg.inv(rest.T @ rest + 0.5 * np.eye(6))
        assert novelty == pytest.approx(0.5 * (text[i] - whole.centre) @ left @ (text[i] - whole.centre), rel=1e-4)


def test_few_rows_make_a_rounder_covariance(rng):
    stretched = rng.normal(size=(4000, 4)) * [3, 1, 1, 1]
    ratios = [np.ptp(np.linalg.eigvalsh(gaussian.pooled_covariance(stretched[:n], n))) for n in (4, 40, 4000)]
    assert ratios[0] < ratios[1] < ratios[2]


def test_the_covariance_is_weighed_by_its_degrees_of_freedom_and_never_singular(rng):
    residuals = rng.normal(size=(9, 3))
    scatter = residuals.T @ residuals / 6
    np.testing.assert_allclose(
        gaussian.pooled_covariance(residuals, 6), 6 / 9 * scatter + 3 / 9 * np.trace(scatter) / 3 * np.eye(3), rtol=1e-6
    )
    assert np.isfinite(np.linalg.inv(gaussian.pooled_covariance(np.zeros((9, 3), np.float32), 6))).all()


# ---- weights and offsets ----


def test_weights_are_the_least_of_a_convex_problem_and_not_negative(rng):
    labels = rng.integers(0, 5, 200)
    good = (np.eye(5)[labels] * 3 + rng.normal(size=(200, 5))).astype(np.float32)
    harmful = -good + rng.normal(size=(200, 5)).astype(np.float32)
    logits = np.stack([good, harmful, rng.normal(size=(200, 5)).astype(np.float32)])
    mean, size = np.array([1, 0, 0.5]), np.array([blend._mean_abs_deviation(expert) for expert in logits])
    weights = blend.fit_weights(logits, labels, mean)
    assert weights[0] > 0.3 and weights[1] == 0 and weights.min() >= 0

    def value(w):
        loss, _ = cross_entropy(np.tensordot(w.astype(np.float32), logits, 1), labels)
        return loss + blend.PRIOR_ROWS / 2 * ((w * size - mean) ** 2).sum() / len(labels) ** 2

    for expert, nudge in ((0, 0.2), (0, -0.2), (1, 0.2), (2, 0.2)):
        other = weights.copy()
        other[expert] += nudge
        assert value(other) > value(weights) - 1e-6


@pytest.mark.parametrize(
    "useless",
    [
        np.zeros,
        lambda shape: np.full(shape, 30.0),
        lambda shape: 30 + 1e-6 * np.random.default_rng(1).normal(size=shape),
        lambda shape: np.full(shape, np.nan),
        lambda shape: np.full(shape, np.inf),
    ],
    ids=["zero", "constant", "rounding", "nan", "inf"],
)
def test_an_expert_that_says_nothing_gets_no_weight(rng, useless):
    labels = rng.integers(0, 5, 60)
    logits = np.stack([np.eye(5)[labels] + rng.normal(size=(60, 5)) for _ in range(2)]).astype(np.float32)
    with_useless = np.insert(logits, 1, useless((60, 5)).astype(np.float32), axis=0)
    weights = blend.fit_weights(with_useless, labels, np.array([1.0, 0.5, 0.5]))
    assert weights[1] == 0
    np.testing.assert_allclose(weights[[0, 2]], blend.fit_weights(logits, labels, np.array([1.0, 0.5])), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_an_expert_does_not_matter(rng, scale):
    labels = rng.integers(0, 5, 60)
    logits = np.stack([np.eye(5)[labels] + rng.normal(size=(60, 5)) for _ in range(2)]).astype(np.float32)
    scaled = logits * np.array([1, scale], np.float32)[:, None, None]
    weights, expected = (blend.fit_weights(x, labels, np.array([1.0, 0.5])) for x in (scaled, logits))
    np.testing.assert_allclose(weights * [1, scale], expected, rtol=1e-3)


def test_experts_that_all_say_nothing_leave_the_mean_of_the_prior():
    mean = np.array([1.0, 0.5])
    weights = blend.fit_weights(np.zeros((2, 6, 3), np.float32), np.arange(6) % 3, mean)
    np.testing.assert_array_equal(weights, mean)
    weights[:] = 0  # a copy: the prior stays what it is
    assert mean.tolist() == [1, 0.5]


def make_equal_texts(rng, noise, rows=6, shots=4):
    """Return a task whose classes have the same text, but for noise; shots and rows tell them apart."""
    text, support, val, test = make_task(rng, classes=4, shots=shots, rows=rows)
    same = unit(text.features[:1] + noise * rng.normal(size=text.features.shape))
    return replace(text, features=np.asarray(same, np.float32)), support, val, test


@pytest.mark.parametrize("noise", [0, 1e-8, 1e-6, 1e-3])
@pytest.mark.parametrize("validated, shots", [(True, 4), (True, 1), (False, 4), (False, 1)])
def test_equal_texts_do_no_harm(rng, noise, validated, shots):
    """Features of one's own with a dummy text for all classes; class names that mean the same to CLIP."""
    text, support, val, test = make_equal_texts(rng, noise, shots=shots)
    adapter, _ = train("blend", text, support, val if validated else None, CPU)
    tip, _ = train("tip", text, support, val if validated else None, CPU)
    assert accuracy(adapter, test) > accuracy(tip, test) - 0.05 > 0.6


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_the_logit_scale_of_the_texts_does_no_harm(rng, scale):
    text, support, val, test = make_task(rng)
    usual, _ = train("blend", text, support, val, CPU)
    other, _ = train("blend", replace(text, scale=scale), support, val, CPU)
    assert accuracy(other, test) > accuracy(usual, test) - 0.05


def test_a_text_that_is_a_copy_of_another_does_no_harm(rng):
    text, support, val, test = make_task(rng)
    copied = text.features.copy()
    copied[1] = copied[0]
    adapter, _ = train("blend", replace(text, features=copied), support, val, CPU)
    assert accuracy(adapter, test) > 0.8
    assert accuracy(adapter, test, np.isin(test.labels, [0, 1])) > 0.7  # the shots tell them apart


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("clap", "taskres")])
@pytest.mark.parametrize("validated", [True, False])
def test_a_single_class_in_all_is_no_obstacle(rng, method, validated):
    text, support, val, test = make_task(rng, classes=1)
    adapter, _ = train(method, text, support, val if validated else None, CPU)
    assert accuracy(adapter, test) == 1


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_column_that_is_constant_does_no_harm(rng, value):
    text, support, val, test = make_task(rng)

    def with_column(rows):
        return unit(np.concatenate([rows, np.full((*rows.shape[:-1], 1), value)], axis=-1))

    task = [replace(part, features=with_column(part.features)) for part in (text, support, val, test)]
    adapter, _ = train("blend", *task[:3], CPU)
    usual, _ = train("blend", text, support, val, CPU)
    assert accuracy(adapter, task[3]) > accuracy(usual, test) - 0.05


# ---- few validation rows ----


def test_few_validation_rows_choose_together_with_the_shots(rng):
    text, support, val, _ = make_task(rng, classes=12, shots=4, rows=1)
    _, chosen = train("blend", text, support, val, CPU)
    assert chosen["how"] == "on 12 validation rows and leaving one shot a class out in turn"
    assert chosen["rows"] == 12 + 48


def test_enough_validation_rows_choose_alone(rng):
    text, support, val, _ = make_task(rng, classes=12, rows=blend.MIN_BASE_ROWS // 12 + 1)
    adapter, chosen = train("blend", text, support, val, CPU)
    assert chosen["how"] == f"on {len(val.labels)} validation rows" and chosen["rows"] == len(val.labels)
    assert chosen["top1"] == pytest.approx(accuracy(replace(adapter, alpha=0.0), val))  # of the linear part


def test_the_prior_decides_without_evidence_and_yields_to_many_rows(rng):
    """Two experts: the prior wants the first, the rows the second."""
    mean, share = np.array([3.0, 0.0]), []
    for n in (2, 20, 200, 2000):
        labels = np.arange(n) % 4
        good = (2 * np.eye(4)[labels] + rng.normal(size=(n, 4))).astype(np.float32)
        weights = blend.fit_weights(np.stack([rng.normal(size=(n, 4)).astype(np.float32), good]), labels, mean)
        share.append(weights[1] / weights.sum())
    assert share[0] < 0.5 and share == sorted(share) and share[3] > 0.9


def test_an_offset_gives_new_classes_what_is_theirs_and_no_more(rng):
    """New rows lie 8 below base ones; those that neither side classifies rightly count for nothing."""
    lead = np.concatenate([rng.normal(12, 1, 300), rng.normal(4, 1, 60), rng.normal(30, 1, 500)])
    worth = np.concatenate([np.full(300, -1 / 300), np.full(60, 1 / 60), np.zeros(500)])
    assert 6 < offsets._best_offset([offsets._Gains(lead, worth)]) < 10 and offsets._best_offset([]) == 0
    base, new = np.array([[3.0, 0], [3, 0], [3, 0]]), np.array([[1.0, 0], [0, 1], [1, 0]])
    lead, worth = offsets._gains_if_new(base, np.array([0, 2]), new, np.array([1, 3]), np.array([0, 3, 3]), 0.5)
    assert lead.tolist() == [2, 2, 2] and worth.tolist() == [-1, 0.25, 0]


@pytest.mark.parametrize("lead", [10.0, -10.0])
def test_far_classes_win_hardly_a_correct_row_even_if_their_logits_are_the_higher_ones(lead):
    """Two base classes and a far one, whose logit is `lead` below that of the right base class."""
    rows = np.array([[5, 0, 5 - lead], [0, 5, 5 - lead]], np.float32)
    fold = Fold(np.ones(2, bool), rows, np.array([0, 1]))
    learned = experts.Experts(
        [Linear(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))], np.array([True, True, False]), np.zeros(3, bool)
    )
    offset = offsets._max_far_offset([fold], [learned], np.ones(1))
    assert offset == pytest.approx(lead - 0.1 * abs(lead))
    without_far = learned._replace(is_near=~learned.is_base)
    assert offsets._max_far_offset([fold], [without_far], np.ones(1)) == offsets.MAX_OFFSET


# ---- the blend ----


def test_the_blend_beats_zero_shot_and_its_probabilities_can_be_trusted(rng):
    text, support, val, test = make_task(rng)
    adapter, chosen = train("blend", text, support, val, CPU)
    zero_shot, _ = train("zero-shot", text, support, val, CPU)
    assert accuracy(adapter, test) > accuracy(zero_shot, test) + 0.05
    assert (
        chosen["how"] == "on 72 validation rows and leaving one shot a class out in turn"
        and set(chosen["weights"]) == set(experts.EXPERTS)
        and min(chosen["weights"].values()) >= 0
    )
    assert "offset_alike" not in chosen


def test_the_blend_is_the_weighted_sum_of_its_experts(rng):
    text, support, val, test = make_task(rng)
    adapter, chosen = train("blend", text, support, val, CPU)
    expert_logits = experts.learn_experts(text, support).logits(test.features)
    logits = np.tensordot(list(chosen["weights"].values()), expert_logits, 1)
    linear = test.features @ adapter.weight.T + adapter.bias
    np.testing.assert_allclose(linear, logits, atol=1e-3)
    cache = np.exp(-adapter.beta * (1 - test.features @ adapter.keys.T)) @ adapter.values
    assert chosen["alpha"] > 0
    np.testing.assert_allclose(
        predict_logits(adapter, test.features), linear + chosen["alpha"] * cache, atol=1e-3, rtol=1e-4
    )


def test_the_same_rows_and_seed_give_the_same_blend(rng):
    task = make_task(rng, without_shots=(2, 5))[:3]
    one, other = (train("blend", *task, CPU)[0] for _ in range(2))
    assert one.weight.tobytes() == other.weight.tobytes() and one.bias.tobytes() == other.bias.tobytes()


def test_test_rows_are_nothing_that_a_method_sees():
    for method in METHODS.values():
        code = method.function.__code__
        assert code.co_varnames[: code.co_argcount] == ("text", "support", "val", "settings")


@pytest.mark.parametrize("shots", [2, 4, 9])
def test_without_validation_rows_shots_are_left_out_at_most_four_times(rng, shots):
    text, support, _, test = make_task(rng, shots=shots)
    folds, how = make_folds(support, None, blend.MAX_FOLDS)
    assert (
        how
        == {1: "leaving one shot a class out in turn", 3: "leaving up to 3 shots a class out in turn"}[-(-shots // 4)]
    )
    assert len(folds) == min(shots, 4) and sum(len(fold.labels) for fold in folds) == 12 * shots
    for fold in folds:
        assert (
            set(support.labels[fold.shots]) == set(range(12))
            and not np.isin(fold.features, support.features[fold.shots][:, 0]).all(axis=1).any()
        )
    adapter, chosen = train("blend", text, support, None, CPU)
    assert chosen["how"] == how and chosen["rows"] == 12 * shots and accuracy(adapter, test) > 0.7


def test_one_shot_a_class_and_nothing_else_takes_the_defaults(rng):
    text, support, _, test = make_task(rng, shots=1)
    adapter, chosen = train("blend", text, support, None, CPU)
    assert chosen["how"].startswith("defaults") and chosen["weights"] == blend.DEFAULT_WEIGHTS
    zero_shot, _ = train("zero-shot", text, support, None, CPU)
    assert accuracy(adapter, test) > accuracy(zero_shot, test)


def test_one_shot_a_class_and_nothing_else_does_not_swallow_classes_without(rng):
    text, support, _, test = make_task(rng, classes=40, shots=1, without_shots=(1, 7, 13, 22, 30), far=True)
    adapter, zero_shot = (train(method, text, support, None, CPU)[0] for method in ("blend", "zero-shot"))
    new = np.isin(test.labels, (1, 7, 13, 22, 30))
    assert accuracy(adapter, test, new) > accuracy(zero_shot, test, new) - 0.1


def test_refit_learns_from_validation_rows_but_chooses_as_before(rng):
    text, support, val, test = make_task(rng, shots=1)
    outcome = methods.train("blend", text, support, val, CPU)
    plain = outcome.adapter
    assert accuracy(outcome.refit(text, support, val), test) > accuracy(plain, test)
    nothing_new = Split(val.features, np.full(72, -1), val.names)
    np.testing.assert_array_equal(outcome.refit(text, support, nothing_new).weight, plain.weight)
    added = add_validation_rows(support, Split(val.features, np.where(np.arange(72) % 2, val.labels, -1), val.names))
    assert len(added.labels) == 12 + 36 and added.features.shape[1] == 2


# ---- classes without shots ----


def test_near_classes_follow_their_texts(rng):
    without_shots = (1, 7, 13, 22, 30)
    text, support, val, test = make_task(rng, classes=40, without_shots=without_shots)
    adapter, chosen = train("blend", text, support, val, CPU)
    zero_shot, _ = train("zero-shot", text, support, val, CPU)
    new = np.isin(test.labels, without_shots)
    assert chosen["classes_without_shots"] == 5 and chosen["alike"] >= 4
    assert accuracy(adapter, test, new) > accuracy(zero_shot, test, new) - 0.05 and accuracy(
        adapter, test, ~new
    ) > accuracy(zero_shot, test, ~new)


def test_far_classes_keep_their_texts(rng):
    without_shots = (1, 7, 13, 22, 30)
    text, support, val, test = make_task(rng, classes=40, without_shots=without_shots, far=True)
    adapter, chosen = train("blend", text, support, val, CPU)
    assert chosen["alike"] == 0
    own = adapter.weight[list(without_shots)]
    np.testing.assert_allclose(unit(own), text.features[list(without_shots)], atol=1e-4)
    assert np.ptp(adapter.bias[list(without_shots)]) < 1e-4 and adapter.bias[1] == pytest.approx(
        chosen["offset_strange"], abs=1e-3
    )
    base = ~np.isin(test.labels, without_shots)
    among = predict_logits(adapter, test.features[base])
    among[:, list(without_shots)] = -np.inf
    assert accuracy(adapter, test, base) > (among.argmax(axis=1) == test.labels[base]).mean() - 0.03


def test_a_single_class_with_shots_is_no_obstacle(rng):
    text, support, val, test = make_task(rng, without_shots=range(1, 12))
    adapter, chosen = train("blend", text, support, val, CPU)
    assert np.isfinite(predict_logits(adapter, test.features)).all() and chosen["weights"]["gaussian 1, 4"] == 0


@pytest.mark.parametrize("classes, without_shots", [(1, ()), (2, (1,)), (3, (1,))])
@pytest.mark.parametrize("rows", ["val", None])
def test_a_shot_or_two_in_all_are_no_obstacle(rng, classes, without_shots, rows):
    """One class with a shot of its own, or two that are hidden from one another: no shot differs from its class's
    mean."""
    text, support, val, test = make_task(rng, classes=classes, shots=1, without_shots=without_shots)
    adapter, chosen = train("blend", text, support, rows and val, CPU)
    assert np.isfinite(predict_logits(adapter, test.features)).all() and chosen["how"].startswith(
        "on " if rows and classes == 3 else "defaults: "
    )


@pytest.mark.parametrize("method", ["blend", "gda", "proker", "tip"])
def test_shots_that_are_copies_of_one_another_are_no_obstacle(rng, method):
    text, support, val, test = make_task(rng, shots=1)
    twice = subset(support, np.arange(12).repeat(2))
    for rows in (val, None):
        adapter, _ = train(method, text, twice, rows, CPU)
        assert accuracy(adapter, test) > 0.5


@pytest.mark.parametrize("method", ["blend", "gda", "proker", "tip"])
def test_validation_rows_without_a_label_do_not_count(rng, method):
    text, support, val, test = make_task(rng, without_shots=(3,))
    unlabelled = Split(val.features, np.full(len(val.labels), -1), val.names)
    (with_them, chosen), (without, again) = (train(method, text, support, rows, CPU) for rows in (unlabelled, None))
    assert chosen == again and chosen["how"] == "leaving one shot a class out in turn"
    np.testing.assert_array_equal(predict_logits(with_them, test.features), predict_logits(without, test.features))


def test_a_class_of_a_single_shot_stays_in_every_fold(rng):
    text, support, _, test = make_task(rng, shots=3)
    support = subset(support, np.flatnonzero((support.labels != 5) | (index_in_class(support.labels) == 0)))
    _, chosen = train("blend", text, support, None, CPU)
    assert chosen["rows"] == 33 and all(
        (support.labels[fold.shots] == 5).sum() == 1 for fold in make_folds(support, None, blend.MAX_FOLDS).folds
    )


def test_validation_rows_of_classes_without_shots_choose_no_weights(rng):
    text, support, val, test = make_task(rng, shots=1)
    some = support.labels > 3
    support = Support(support.features[some], support.labels[some], support.names[some])
    only = val.labels < 4
    adapter, chosen = train("blend", text, support, Split(val.features[only], val.labels[only], val.names[only]), CPU)
    assert chosen["how"] == "defaults: the validation rows cannot compare classes with shots" and "top1" not in chosen
    assert np.isfinite(predict_logits(adapter, test.features)).all() and chosen["weights"]["gaussian 1, 4"] == 0


def test_rows_that_are_all_right_leave_the_weights_moderate(rng):
    text, support, val, test = make_task(rng, classes=2, rows=3, noise=0.1)
    adapter, chosen = train("blend", text, support, val, CPU)
    assert chosen["top1"] == 1 and np.abs(predict_logits(adapter, test.features)).max() < 200


# ---- other draws of shots ----


def test_other_shots_are_drawn_from_shots_and_validation_rows(rng):
    text, support, val, _ = make_task(rng, shots=3)
    shots, rest = redraw(support, val, 5)
    assert np.bincount(shots.labels).tolist() == [3] * 12 and shots.features.shape == support.features.shape
    assert sorted([*shots.names, *rest.names]) == sorted([*support.names, *val.names])
    assert (redraw(support, val, 5)[0].names == shots.names).all() and (
        redraw(support, val, 6)[0].names != shots.names
    ).any()


# ---- published methods ----


def test_gda_is_its_formula(rng):
    text, support, val, test = make_task(rng)
    adapter, chosen = train("gda", text, support, val, CPU)
    keys = shot_rows(support.features).astype(np.float64)
    means = np.stack([keys[support.labels == c].mean(axis=0) for c in range(12)])
    spread = np.cov((keys - means[support.labels]).T)
    precision = WIDTH * np.linalg.inv((len(keys) - 1) * spread + np.trace(spread) * np.eye(WIDTH))
    gaussian_logits = test.features @ precision @ means.T - 0.5 * np.einsum("cd,de,ce->c", means, precision, means)
    expected = text.scale * test.features @ text.features.T + chosen["alpha"] * gaussian_logits
    found = predict_logits(adapter, test.features)
    np.testing.assert_allclose(
        found - found.mean(axis=1, keepdims=True), expected - expected.mean(axis=1, keepdims=True), atol=1e-2
    )


def test_gda_of_one_shot_a_class_is_zero_shot(rng):
    text, support, val, test = make_task(rng, shots=1)
    found = predict_logits(train("gda", text, support, val, CPU)[0], test.features)
    np.testing.assert_allclose(
        found - found[:, :1],
        text.scale * (test.features @ text.features.T - (test.features @ text.features.T)[:, :1]),
        atol=1e-3,
    )


def test_proker_fits_its_shots_where_it_is_hardly_held_back(rng):
    text, support, val, _ = make_task(rng)
    keys = shot_rows(support.features)
    held, free = published._proker_values(text, keys, support.labels, 8.0, [1e6, 1e-9])
    kernel = np.exp(-8.0 * (1 - keys @ keys.T))
    targets = np.eye(12)[support.labels]
    np.testing.assert_allclose(keys @ text.features.T + kernel @ (free / 1e-9), targets, atol=0.05)
    np.testing.assert_allclose(held, targets - keys @ text.features.T, atol=1e-3)


@pytest.mark.parametrize("method", ["taskres", "clap", "proker", "gda"])
def test_a_published_method_learns(rng, method):
    text, support, val, test = make_task(rng)
    adapter, chosen = train(method, text, support, val, CPU)
    zero_shot, _ = train("zero-shot", text, support, val, CPU)
    assert accuracy(adapter, test) > accuracy(zero_shot, test) and adapter.method == method and chosen["how"]


def test_an_adapter_without_weight_is_zero_shot(rng):
    text = make_task(rng)[0]
    adapter = linear_adapter("x", text, Linear(None, None))
    np.testing.assert_allclose(adapter.weight, text.scale * text.features)
    assert not adapter.bias.any()


def test_one_fold_of_all_shots_is_the_result(rng):
    _, support, val, _ = make_task(rng, shots=2)
    assert learn_from_all_shots(make_folds(support, val).folds)
    assert not learn_from_all_shots(make_folds(support, None).folds)
    assert not learn_from_all_shots(make_folds(subset(support, slice(0, None, 2)), None).folds)  # no fold at all


def test_rows_by_class(rng):
    labels, rows = np.array([3, 0, 3, 1, 3]), rng.normal(size=(5, 4)).astype(np.float32)
    assert has_shots(labels, 5).tolist() == [True, True, False, True, False]
    np.testing.assert_array_equal(one_hot(labels, 5), np.eye(5)[labels])
    np.testing.assert_allclose(class_sums(rows, labels, 5), np.eye(5)[labels].T @ rows, atol=1e-6)
    assert one_hot(labels, 5).dtype == class_sums(rows, labels, 5).dtype == np.float32 and one_hot(
        labels[:0], 5
    ).shape == (0, 5)


def test_index_in_class():
    assert index_in_class(np.array([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]
