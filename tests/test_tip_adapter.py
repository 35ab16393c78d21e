"""Tip-Adapter: its formula, fine-tuning against the published code, the search against the plain loop, the folds."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import make_task_with_new_classes, names, train

import methods.tip_adapter
import tip_adapter_utils as tip
from fewshot import rows as feature_rows
from fewshot.artifacts import Split, Support, Text
from fewshot.errors import TaskError
from fewshot.rows import unit_rows
from jclip.features import unit
from methods import Settings
from methods.folds import make_folds
from methods.grid import ALPHAS, BETAS, hidden_class_parts
from methods.intervals import count_correct

WIDTH = 16


def random_rows(rng, *shape):
    return unit_rows(rng.normal(size=shape).astype(np.float32))


def sign_rows(rng, n):
    """Unit rows whose products are exact in any order of summation, so that equal logits are equal to the last bit."""
    return rng.choice([-1, 1], (n, WIDTH)) / WIDTH**0.5


def make_text(rng, classes):
    return Text(random_rows(rng, classes, WIDTH), names("class", classes), 100.0)


def silent(text):
    """The text, saying next to nothing, so that the cache decides."""
    return Text(text.features, text.names, 1e-3)


def make_support(rng, labels, views=1):
    return Support(random_rows(rng, len(labels), views, WIDTH), np.array(labels), names("shot", len(labels)))


def make_val(rng, labels):
    return Split(random_rows(rng, len(labels), WIDTH), np.array(labels), names("val", len(labels)))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


# ---- the formula ----


def test_the_formula_term_by_term(rng):
    f, w, k, v = (
        random_rows(rng, 3, 4),
        random_rows(rng, 2, 4),
        random_rows(rng, 5, 4),
        np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1]],
    )
    logits = tip.tip_logits(100.0 * f @ w.T, f @ k.T, v, 1.5, 4.0)
    for i in range(3):
        for c in range(2):
            cached = sum(v[n, c] * np.exp(-4.0 * (1 - f[i] @ k[n])) for n in range(5))
            assert logits[i, c] == pytest.approx(100.0 * f[i] @ w[c] + 1.5 * cached, abs=1e-4)


def test_jittor_computes_what_numpy_does(rng, jt):
    arrays = random_rows(rng, 7, 3), random_rows(rng, 7, 4), np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    found = tip.tip_logits(*map(jt.array, arrays), 2.0, 5.5).numpy()
    np.testing.assert_allclose(found, tip.tip_logits(*arrays, 2.0, 5.5), rtol=1e-5)


def test_without_alpha_or_keys_it_is_zero_shot(rng):
    f, text, shots = random_rows(rng, 7, WIDTH), make_text(rng, 3), make_support(rng, [0, 1, 2])
    expected = 100.0 * f @ text.features.T
    keys, values = tip.build_cache(shots.features, shots.labels, 3)
    np.testing.assert_allclose(tip.tip_logits(expected, f @ keys.T, values, 0.0, 1.0), expected, rtol=1e-6)
    adapter, _ = train("zero-shot", text, shots, None, Settings())
    np.testing.assert_allclose(tip.predict_logits(adapter, f), expected, rtol=1e-6)


def test_a_key_is_the_renormalised_mean_of_the_views(rng):
    support = make_support(rng, [2, 0], views=3)
    keys, values = tip.build_cache(support.features, support.labels, 4)
    mean = support.features[1].mean(axis=0)
    np.testing.assert_allclose(keys[1], mean / np.linalg.norm(mean), rtol=1e-5)
    assert keys.dtype == values.dtype == np.float32 and values.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_chunks_of_rows_do_not_show(rng, monkeypatch):
    text, shots, val = make_text(rng, 4), make_support(rng, [0, 1, 2, 3, 3]), make_val(rng, np.arange(50) % 4)
    adapter, chosen = train("tip", text, shots, val, Settings())
    logits = tip.predict_logits(adapter, val.features)
    monkeypatch.setattr(feature_rows, "CHUNK", 30)
    assert train("tip", text, shots, val, Settings())[1] == chosen
    np.testing.assert_allclose(tip.predict_logits(adapter, val.features), logits, rtol=1e-5)


# ---- fine-tuning ----


@pytest.mark.parametrize("case", ["whole", "batches"])
def test_keys_after_each_epoch_are_those_of_the_published_code_in_pytorch(case, jt):
    golden = np.load(GOLDEN / "tip_adapter_f.npz")
    features, labels, after = (golden[f"{case}_{name}"] for name in ("features", "labels", "after"))
    text = Text(golden["text"], names("class", len(golden["text"])), golden["scale"].item())
    cache = tip.build_cache(features, labels, len(text.names))
    actual = list(
        tip.fine_tune(
            (features.reshape(-1, features.shape[2]), labels.repeat(features.shape[1])),
            text,
            cache,
            golden["alpha"].item(),
            golden["beta"].item(),
            epochs=len(after),
            lr=golden[f"{case}_lr"].item(),
            seed=golden["seed"].item(),
            device="cpu",
        )
    )
    assert np.abs(after[0] - cache.keys).max() > 1e-3  # else nothing would be tested
    np.testing.assert_allclose([epoch.keys.numpy() for epoch in actual], after, atol=1e-5)


def test_divergence_is_an_error(rng, jt):
    with pytest.raises(TaskError, match="diverged in epoch [12]; choose an --lr below 1e[+]30"):
        train("tip-f", make_text(rng, 3), make_support(rng, [0, 1, 2]), None, Settings(lr=1e30))


# ---- the search ----


def plain_loop(features, labels, text, scale, keys, values, alphas, betas):
    zero_shot, affinity = scale * (features @ text.T), features @ keys.T
    return np.array(
        [
            [
                np.count_nonzero(tip.tip_logits(zero_shot, affinity, values, alpha, beta).argmax(axis=1) == labels)
                for alpha in alphas
            ]
            for beta in betas
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(1, 6),
    shots=st.integers(1, 12),
    rows=st.integers(1, 60),
    scale=st.sampled_from([1.0, 5.0, 100.0]),
)
def test_the_search_counts_what_the_plain_loop_counts(seed, classes, shots, rows, scale):
    rng = np.random.default_rng(seed)
    features, text, keys = (
        sign_rows(rng, rows),
        sign_rows(rng, classes),
        random_rows(rng, shots, WIDTH).astype(np.float64),
    )
    text[-1] = text[0]  # told apart by the cache, or by the tie rule alone
    values = np.eye(classes)[rng.integers(0, max(1, classes - 1), shots)]  # the last class has no shots
    arguments = features, rng.integers(0, classes, rows), text, scale, keys, values, [0.0, *ALPHAS], BETAS[::25]
    np.testing.assert_array_equal(count_correct(*arguments), plain_loop(*arguments))


def test_of_equal_classes_the_lowest_label_wins(rng):
    same, key = sign_rows(rng, 1).repeat(3, axis=0), sign_rows(rng, 1).repeat(3, axis=0)
    right = count_correct(
        sign_rows(rng, 3), np.array([0, 1, 2]), same, 100.0, key, np.eye(3), [0.0, 0.5, 9.0], [1.0, 7.0]
    )
    assert (right == 1).all()


def test_of_equally_good_settings_the_first_is_taken(rng):
    text = make_text(rng, 3)
    # zero-shot is right in all, and any cache of the true rows
    val = Split(text.features, np.arange(3), np.array(["a", "b", "c"]))
    support = Support(text.features[:, None], np.arange(3), val.names)
    _, chosen = train("tip", text, support, val, Settings())
    assert (chosen["alpha"], chosen["beta"], chosen["top1"], chosen["zero_shot_top1"]) == (ALPHAS[0], BETAS[0], 1, 1)


def test_settings_whose_affinities_overflow_are_never_right(rng):
    row, text = random_rows(rng, 1, WIDTH), random_rows(rng, 2, WIDTH)
    label, keys = (row @ text.T).argmax(axis=1), 50 * row.repeat(2, axis=0)  # long keys, as fine-tuning may make them
    right = count_correct(row, label, text, 100.0, keys, np.eye(2, dtype=np.float32), ALPHAS, [0.1, 20.0])
    assert right[0].all() and not right[1].any()


def test_the_search_agrees_with_the_plain_loop_on_real_features(shared):
    task = np.load(shared / "data/features/cars_4.npz")
    # float64, since rounding would decide a few rows in float32
    text, keys, rows = (task[name].astype(np.float64) for name in ("text", "train_features", "val_features"))
    values = np.eye(len(text))[task["train_labels"]]
    arguments = rows, task["val_labels"], text, 100.0, keys, values, ALPHAS[::3], BETAS[::40]
    np.testing.assert_array_equal(count_correct(*arguments), plain_loop(*arguments))


# ---- folds ----


def test_a_shot_left_out_is_never_in_the_cache_that_it_validates(rng):
    support = make_support(rng, [0, 0, 0, 1, 2, 2, 0], views=2)
    folds, how = make_folds(support, None)
    assert len(folds) == 4 and how == "leaving one shot a class out in turn"
    left_out = []
    for fold in folds:
        # view 0 validates
        rows = [i for row in fold.features for i in np.flatnonzero((support.features[:, 0] == row).all(axis=1))]
        assert len(rows) == len(fold.features) and set(rows) == set(np.flatnonzero(~fold.shots))
        assert support.labels[rows].tolist() == fold.labels.tolist()
        assert len(set(fold.labels)) == len(rows)  # one per class
        assert set(support.labels[fold.shots]) == {0, 1, 2}  # something is left of each class
        left_out += rows
    assert sorted(left_out) == [0, 1, 2, 4, 5, 6]  # each in turn, but for the only shot of class 1


@pytest.mark.parametrize("method", ["tip", "tip-f"])
def test_shots_without_a_pattern_are_not_recognised_when_left_out(method, rng, request):
    """With a held-out shot among the keys, or among the rows of fine-tuning, it would find itself and be right."""
    if method == "tip-f":
        request.getfixturevalue("jt")
    classes = 20
    support = make_support(rng, np.arange(classes).repeat(3))
    _, chosen = train(method, silent(make_text(rng, classes)), support, None, Settings(epochs=3, lr=0.01))
    assert chosen["rows"] == 3 * classes and chosen["top1"] < 0.3


def test_validation_rows_validate_all_shots_and_unlabelled_ones_do_not_count(rng):
    support, val = make_support(rng, [0, 0, 1]), make_val(rng, [1, -1, 0])
    (fold,), how = make_folds(support, val)
    assert (
        fold.shots.all() and len(fold.shots) == 3 and fold.labels.tolist() == [1, 0] and how == "on 2 validation rows"
    )
    assert (fold.features == val.features[[0, 2]]).all()
    assert make_folds(support, make_val(rng, [-1, -1]))[1] == make_folds(support, None)[1]


def test_one_shot_a_class_and_no_validation_takes_the_defaults(rng, jt):
    text, support = make_text(rng, 3), make_support(rng, [0, 1, 2], views=2)
    adapter, chosen = train("tip", text, support, None, Settings())
    assert (adapter.alpha, adapter.beta) == (1.17, 1.0) and chosen["how"].startswith("defaults: ")
    tuned, chosen = train("tip-f", text, support, None, Settings(epochs=2))
    assert (tuned.alpha, tuned.beta, chosen["epoch"]) == (tip.TRAIN_ALPHA, tip.TRAIN_BETA, 2)
    assert not np.array_equal(tuned.keys, adapter.keys)


@pytest.fixture
def keys_by_epoch(monkeypatch):
    """Replaces fine-tuning: the keys are right (those of the cache) after epoch 3 alone. Counts the epochs run."""
    ran = []

    class Keys(np.ndarray):
        def numpy(self):  # as a Var has it
            return np.asarray(self)

    def fine_tune(rows, text, cache, *, epochs, validation, **_):
        for epoch in range(1, epochs + 1):
            ran.append(epoch)
            keys = cache.keys * (1 if epoch == 3 else -1)
            right = 0
            if validation:
                features, labels = validation
                zero_shot = text.scale * features @ text.features.T
                logits = tip.tip_logits(zero_shot, features @ keys.T, cache.values, tip.TRAIN_ALPHA, 1.0)
                right = np.count_nonzero(logits.argmax(axis=1) == labels)
            yield tip.Epoch(keys.view(Keys), right)

    monkeypatch.setattr(methods.tip_adapter, "fine_tune", fine_tune)
    return ran


def test_the_epoch_is_chosen_on_validation_rows(rng, keys_by_epoch):
    support = make_support(rng, np.arange(8))
    val = Split(support.features[:, 0], support.labels, support.names)
    adapter, chosen = train("tip-f", silent(make_text(rng, 8)), support, val, Settings(epochs=5))
    assert chosen["epoch"] == 3 and len(keys_by_epoch) == 5
    np.testing.assert_array_equal(adapter.keys, tip.build_cache(support.features, support.labels, 8).keys)


def test_without_validation_rows_all_shots_are_trained_up_to_the_chosen_epoch(rng, keys_by_epoch):
    of_class = random_rows(rng, 8, 1, WIDTH)
    support = Support(of_class.repeat(2, axis=0), np.arange(8).repeat(2), names("shot", 16))
    adapter, chosen = train("tip-f", silent(make_text(rng, 8)), support, None, Settings(epochs=5))
    # two folds of five epochs, again up to the third; then all
    assert chosen["epoch"] == 3 and keys_by_epoch[10:] == [1, 2, 3] * 3
    assert len(adapter.keys) == 16


def test_a_class_without_shots_lives_from_its_text(rng, jt):
    text, support, val = make_text(rng, 4), make_support(rng, [0, 0, 3, 3]), make_val(rng, [0, 1, 2, 3])
    for method in ("tip", "tip-f"):
        for rows in (val, None):
            adapter, _ = train(method, text, support, rows, Settings(epochs=2))
            assert not adapter.values[:, [1, 2]].any()
            np.testing.assert_allclose(
                tip.predict_logits(adapter, val.features)[:, 1:3], 100 * val.features @ text.features[1:3].T, atol=1e-4
            )


@pytest.mark.parametrize("method", ["tip", "tip-f"])
def test_no_shots_at_all_is_an_error(method, rng):
    with pytest.raises(TaskError, match="no shots for .* choose --method zero-shot"):
        train(method, make_text(rng, 3), make_support(rng, np.zeros(0, np.int64)), None, Settings())


@pytest.mark.parametrize(
    "class_names, parts",
    [
        ([f"a_{i}" for i in range(10)], [[0, 4], [1, 5], [2, 6], [3]]),  # of a group that has shots
        (
            [f"{'abbbcccddd'[i]}_{i}" for i in range(10)],
            [[0], [1, 2, 3], [4, 5, 6]],
        ),  # a group of its own, as the contest's cars
        ([f"{'aaaaaaaddd'[i]}_{i}" for i in range(10)], []),  # nothing to learn from how a group is missed
    ],
)
def test_where_classes_lack_shots_the_choice_is_made_with_others_hidden(class_names, parts):
    """The chosen pair is the best with which hidden classes keep 0.9 of zero-shot's accuracy; all are tried here."""
    text, support, val = make_task_with_new_classes(class_names)
    adapter, chosen = train("tip", text, support, val, Settings())
    assert [part.tolist() for part in hidden_class_parts(text, support)] == parts
    assert ("new_top1" in chosen) == bool(parts)
    if not parts:
        return
    zero_logits = text.scale * (val.features @ text.features.T)

    def accuracies(alpha, beta):
        base, new = [], []
        for part in parts:
            kept = ~np.isin(support.labels, part)
            logits = tip.tip_logits(zero_logits, val.features @ adapter.keys[kept].T, adapter.values[kept], alpha, beta)
            right, is_new = logits.argmax(axis=1) == val.labels, np.isin(val.labels, part)
            base.extend(right[~is_new])
            new.extend(right[is_new])
        return np.mean(base), np.mean(new)

    base, new = accuracies(chosen["alpha"], chosen["beta"])
    zero_shot = (zero_logits.argmax(axis=1) == val.labels).mean()
    assert (chosen["base_top1"], chosen["new_top1"], chosen["zero_shot_top1"]) == tuple(
        map(pytest.approx, (base, new, zero_shot))
    )
    assert new >= 0.9 * zero_shot
    for alpha in ALPHAS:
        for beta in BETAS[::7]:
            if accuracies(alpha, beta)[1] >= 0.9 * zero_shot:
                logits = tip.tip_logits(zero_logits, val.features @ adapter.keys.T, adapter.values, alpha, beta)
                assert (logits.argmax(axis=1) == val.labels).mean() <= chosen["top1"] + 1e-9


def test_hidden_classes_are_held_to_their_own_zero_shot_accuracy():
    """Validation rows of classes without shots do not count towards what hidden classes have to keep."""
    text, support, val = make_task_with_new_classes([f"a_{i}" for i in range(10)])
    _, plain = train("tip", text, support, val, Settings())
    for like, label in ((9, 9), (8, 9)):
        rows = text.features[[like] * 100]
        more = Split(
            np.concatenate([val.features, rows]),
            np.concatenate([val.labels, [label] * 100]),
            names("val", 100 + len(val.labels)),
        )
        folds = make_folds(support, more).folds
        _, chosen = train("tip", text, support, more, Settings())
        assert folds[0].labels.tolist() == more.labels.tolist() and chosen["new_top1"] >= 0.9 * plain["zero_shot_top1"]


def test_with_fewer_classes_than_parts_none_is_hidden_for_nothing():
    text, support, val = make_task_with_new_classes([f"a_{i}" for i in range(10)])
    assert [
        part.tolist()
        for part in hidden_class_parts(text, Support(support.features[:4], support.labels[:4], support.names[:4]))
    ] == [[0], [1]]


def test_hiding_keeps_classes_without_shots_from_being_swallowed():
    text, support, val = make_task_with_new_classes([f"a_{i}" for i in range(10)])
    labels = np.repeat(np.arange(7, 10), 40)
    rows = unit(text.features[labels] + 0.25 * np.random.default_rng(5).normal(size=(len(labels), 16)))

    def kept(text):
        adapter, _ = train("tip", text, support, val, Settings())
        return (tip.predict_logits(adapter, rows).argmax(axis=1) == labels).mean()

    # nothing is hidden: the published choice
    by_group = Text(text.features, text.names, text.scale, {"groups": ["a"] * 7 + ["d"] * 3})
    assert kept(text) > kept(by_group) + 0.1
