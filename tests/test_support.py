"""How shots are selected: counts, determinism, k-means, and caps on large classes."""

import warnings

import numpy as np
import pytest

from fewshot import support
from fewshot.rows import unit_rows

LABELS = np.array([2, 0, 0, 1, 0, 2, 0, 0, 2, 2, 2, 0])  # six of class 0, one of class 1, five of class 2


def features(seed=0):
    rows = np.random.default_rng(seed).normal(size=(len(LABELS), 16)).astype(np.float32)
    return unit_rows(rows)


@pytest.mark.parametrize("how", support.SELECT)
@pytest.mark.parametrize("shots", [1, 3, 9])
def test_every_class_gets_its_shots_or_all_it_has(how, shots):
    chosen = support.select_shots(LABELS, shots, how, 1, features())
    assert np.bincount(LABELS[chosen], minlength=3).tolist() == [min(shots, 6), 1, min(shots, 5)]
    assert len(set(chosen)) == len(chosen) and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, support.select_shots(LABELS, shots, how, 1, features()))


def test_first_takes_the_first_and_random_draws_by_the_seed():
    assert support.select_shots(LABELS, 2, "first", 1).tolist() == [0, 1, 2, 3, 5]
    drawn = {tuple(support.select_shots(LABELS, 2, "random", seed)) for seed in range(20)}
    assert len(drawn) > 5


def test_kmeans_takes_one_shot_of_each_cluster():
    rows = np.repeat(np.eye(3, 8, dtype=np.float32), 4, axis=0) + 0.01 * np.random.default_rng(0).normal(
        size=(12, 8)
    ).astype(np.float32)
    chosen = support.select_shots(np.zeros(12, int), 3, "kmeans", 1, rows)
    assert (chosen // 4).tolist() == [0, 1, 2]
    centres = rows.reshape(3, 4, 8).mean(axis=1)
    assert chosen.tolist() == [
        4 * k + np.linalg.norm(rows[4 * k : 4 * k + 4] - centres[k], axis=1).argmin() for k in range(3)
    ]


def test_copies_of_one_photograph_still_give_the_shots_without_a_warning():
    rows = np.repeat(np.eye(2, 8, dtype=np.float32), 3, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(set(support.select_shots(np.zeros(6, int), 4, "kmeans", 1, rows))) == 4


def test_one_class_does_not_change_what_is_drawn_of_another():
    more = np.append(LABELS, [1, 1, 1])
    kept = support.select_shots(more, 2, "random", 1)
    assert [row for row in kept if more[row] != 1] == [
        row for row in support.select_shots(LABELS, 2, "random", 1) if LABELS[row] != 1
    ]


def test_a_cap_bounds_each_class():
    assert support.subsample(LABELS, None, 1).tolist() == list(range(12))
    assert np.bincount(LABELS[support.subsample(LABELS, 3, 1)], minlength=3).tolist() == [3, 1, 3]
    assert support.subsample(LABELS, 0, 1).tolist() == []


def test_no_photographs_give_no_shots():
    no_labels = np.zeros(0, np.int64)
    assert (
        support.select_shots(no_labels, 4, "kmeans", 1, np.zeros((0, 8))).tolist()
        == support.subsample(no_labels, 3, 1).tolist()
        == []
    )
