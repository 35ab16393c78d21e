"""The store of feature rows: which rows it keeps, which are computed again, and how it survives damage and kills."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT

from fewshot import store
from fewshot.store import Store, make_key

WIDTH = 5


def row(number):
    return np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)


def keys(numbers):
    return [make_key("item", number) for number in numbers]


def rows_of(opened, numbers, batch=4, unreadable=()):
    """Get the rows of `numbers`, computing missing ones in batches; check them, and return what was computed."""
    requested = keys(numbers)
    missing = opened.missing(requested)
    for start in range(0, len(missing), batch):
        indices = [i for i in missing[start : start + batch] if numbers[i] not in unreadable]
        opened.put([requested[i] for i in indices], np.array([row(numbers[i]) for i in indices], np.float32))
    for number, stored in zip(numbers, opened.get(requested)):
        np.testing.assert_array_equal(stored, np.full(WIDTH, np.nan) if number in unreadable else row(number))
    return [numbers[i] for i in missing]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_PART", 10)


def test_rows_are_computed_once(tmp_path, small_parts):
    assert rows_of(Store(tmp_path / "deep/er", WIDTH), range(25)) == list(range(25))
    again = Store(tmp_path / "deep/er", WIDTH)
    assert rows_of(again, range(24, -1, -1)) == [] and rows_of(again, [30, 3, 31, 30]) == [30, 31]
    assert (again.computed, again.reused) == (2, 25)


def test_rows_that_cannot_be_made_are_nan_and_asked_for_again(tmp_path, small_parts):
    for _ in range(2):
        opened = Store(tmp_path, WIDTH)
        computed = rows_of(opened, range(12), unreadable={0, 7, 11})
    assert computed == [0, 7, 11] and (opened.computed, opened.reused) == (0, 9)


def test_no_keys_no_rows(tmp_path):
    assert Store(tmp_path, WIDTH).missing([]) == [] and Store(tmp_path, WIDTH).get([]).shape == (0, WIDTH)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: content + b"\0",
        lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:],
        lambda content: b"\x93NUMPY no array",
        lambda content: content.replace(b"(10,)", b"(10,("),
        lambda content: b"PK\x03\x04" + content[4:],
        lambda content: content.replace(b"(10,), }" + b" " * 12, b"(" + b"9" * 14 + b",), }"),
    ],
)
def test_of_a_damaged_part_the_rows_are_computed_anew(tmp_path, small_parts, damage):
    rows_of(Store(tmp_path, WIDTH), range(30))
    damaged = sorted(tmp_path.glob("*.npy"))[1]
    lost = [key.tobytes() for key in np.load(damaged)["key"]]
    damaged.write_bytes(damage(damaged.read_bytes()))
    opened = Store(tmp_path, WIDTH)
    assert keys(rows_of(opened, range(30))) == lost and (opened.computed, opened.reused) == (10, 20)
    opened.tidy()
    assert len(list(tmp_path.iterdir())) == 3 and rows_of(Store(tmp_path, WIDTH), range(30)) == []


def test_rows_of_another_width_are_no_rows(tmp_path):
    rows_of(Store(tmp_path, WIDTH), range(3))
    other = Store(tmp_path, WIDTH + 1)
    assert other.missing(keys(range(3))) == [0, 1, 2] and np.isnan(other.get(keys(range(3)))).all()
    other.put(keys(range(3)), np.ones((3, WIDTH + 1), np.float32))
    assert (other.get(keys(range(3))) == np.ones((3, WIDTH + 1))).all()


def test_without_spare_rows_tidying_leaves_what_was_asked_for_in_whole_parts(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(store, "SPARE", 0)
    rows_of(Store(tmp_path, WIDTH), range(47))
    for extra in range(100, 105):
        rows_of(Store(tmp_path, WIDTH), [extra])
    opened = Store(tmp_path, WIDTH)
    rows_of(opened, [*range(5, 47), 103, 104])
    before = set(tmp_path.iterdir())
    opened.tidy()
    sizes = sorted(len(np.load(path)) for path in tmp_path.iterdir())
    assert sizes == [4, 10, 10, 10, 10] and len(before & set(tmp_path.iterdir())) == 3  # whole parts were not touched
    assert rows_of(Store(tmp_path, WIDTH), [4, *range(5, 47), 103, 104, 100]) == [4, 100]
    opened.tidy()
    assert rows_of(Store(tmp_path, WIDTH), [*range(5, 47), 103, 104]) == []


def test_tidying_keeps_what_was_not_asked_for_too(tmp_path, small_parts):
    """A run on a few of the rows, or with a model of another width, loses none of the rows stored before."""
    rows_of(Store(tmp_path, WIDTH), range(47))
    partial = Store(tmp_path, WIDTH)
    rows_of(partial, [3, 46, 100])
    partial.tidy()
    other = Store(tmp_path, WIDTH + 1)
    other.put(keys(range(200, 212)), np.ones((12, WIDTH + 1), np.float32))
    other.get(keys(range(200, 212)))
    other.tidy()
    assert rows_of(Store(tmp_path, WIDTH), [*range(47), 100]) == []
    assert sorted(len(np.load(path)) for path in tmp_path.iterdir()) == [2, 8, 10, 10, 10, 10, 10]
    for width, numbers in ((WIDTH, [*range(47), 100]), (WIDTH + 1, range(200, 212))):
        opened = Store(tmp_path, width)
        assert not opened.missing(keys(numbers)) and not np.isnan(opened.get(keys(numbers))).any()


def test_of_more_spare_rows_than_there_is_room_for_the_parts_written_first_go(tmp_path, small_parts, monkeypatch):
    monkeypatch.setattr(store, "SPARE", 25)
    for age, numbers in ((3, range(10)), (2, range(10, 20)), (1, range(20, 30))):
        before = set(tmp_path.iterdir())
        rows_of(Store(tmp_path, WIDTH), numbers)
        for path in set(tmp_path.iterdir()) - before:
            os.utime(path, (1e9 - age, 1e9 - age))
    other = Store(tmp_path, WIDTH + 1)
    other.put(keys(range(200, 210)), np.ones((10, WIDTH + 1), np.float32))
    other.get(keys(range(200, 210)))
    opened = Store(tmp_path, WIDTH)
    rows_of(opened, [0, 1, 10])
    opened.tidy()  # spare: 10 of another width, 10 of the third part, 9 of the second, 8 of the first
    assert sum(len(np.load(path)) for path in tmp_path.iterdir()) == 3 + 20
    assert rows_of(Store(tmp_path, WIDTH), [0, 1, 10, *range(20, 30)]) == [] and rows_of(
        Store(tmp_path, WIDTH), [2, 11]
    ) == [2, 11]


def test_tidying_what_is_tidy_changes_nothing(tmp_path, small_parts):
    opened = Store(tmp_path, WIDTH)
    rows_of(opened, range(47))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    opened.tidy()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in before}


def test_clearing_forgets_all(tmp_path):
    opened = Store(tmp_path, WIDTH)
    rows_of(opened, range(3))
    opened.put(keys([9]), row(9)[None])  # not on disk yet
    opened.clear()
    assert opened.requested == set() and (opened.computed, opened.reused) == (0, 0)
    assert opened.missing(keys([9])) == [0] and np.isnan(opened.get(keys([9]))).all()
    assert rows_of(opened, range(3)) == [0, 1, 2] and rows_of(Store(tmp_path, WIDTH), range(3)) == []


@pytest.mark.parametrize("moment", range(8))
def test_killed_at_any_moment_of_writing_it_has_lost_a_part_at_most(tmp_path, moment, small_parts):
    """Four parts take four calls of fsync and of replace; the process is killed before one of these eight."""
    rows = [row(number).tolist() for number in range(40)]
    code = f"""
import os, sys
import numpy as np
from fewshot import store
store.ROWS_PER_PART, moments = 10, iter(range(100))
def kill_before(function):
    def run(*arguments):
        if next(moments) == {moment}:
            os.kill(os.getpid(), 9)
        return function(*arguments)
    return run
os.fsync, os.replace = kill_before(os.fsync), kill_before(os.replace)
keys = [store.make_key("item", number) for number in range(40)]
store.Store(sys.argv[1], {WIDTH}).put(keys, np.float32({rows}))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=PROJECT)
    assert done.returncode == -signal.SIGKILL
    on_disk = moment // 2 * 10
    assert rows_of(Store(tmp_path, WIDTH), range(40)) == list(range(on_disk, 40)) and not [
        name for name in os.listdir(tmp_path) if name.endswith(".part")
    ]
