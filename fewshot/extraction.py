"""From a task's photographs and sentences to the files of features: text.npz, support.npz, val.npz and test.npz."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import jclip
from jclip import bounded

from . import artifacts
from .data import Photo, Task
from .encoder import Encoder
from .errors import TaskError, preview
from .files import written_whole
from .prompts import Prompts
from .support import select_shots, subsample

logger = logging.getLogger("fewshot")

UNREADABLE = "unreadable.txt"


@dataclass(frozen=True)
class Sampling:
    """Which training photographs become shots and validation photographs, and which views the shots get.

    Attributes
    ----------
    shots : int
        Shots of each class.
    select : {"kmeans", "first", "random"}
        How the shots are chosen.
    views : sequence of str
        Names of `augment.VIEWS`; "plain" first.
    max_train, max_val : int or None
        At most so many photographs of each class are considered, or kept for validation.
    seed : int
    """

    shots: int = 4
    select: str = "kmeans"
    views: Sequence[str] = ("plain",)
    max_train: int | None = None
    max_val: int | None = None
    seed: int = 1


class Extraction(NamedTuple):
    """The features of a task; val is None where no photograph is left for validation."""

    text: artifacts.Text
    support: artifacts.Support
    val: artifacts.Split | None
    test: artifacts.Split


class Selection(NamedTuple):
    """The chosen training photographs, by their indices in the list. N shots, V views, M for validation."""

    pool: np.ndarray  # (P,): all that were considered and that are not known to be unreadable
    shots: np.ndarray  # (N,)
    val: np.ndarray  # (M,)
    shot_rows: np.ndarray  # float32 (N, V, D)
    val_rows: np.ndarray  # float32 (M, D)
    failures: dict[int, str]  # why other photographs cannot be read


def extract(task: Task, prompts: Prompts, encoder: Encoder, sampling: Sampling, output: Path) -> Extraction:
    """Encode all that a task needs, then write its files, all or none.

    Photographs that cannot be read are left out and listed in unreadable.txt.

    Parameters
    ----------
    task : Task
    prompts : Prompts
        The sentences of the task's classes.
    encoder : Encoder
        With a store, so that nothing is encoded twice.
    sampling : Sampling
    output : Path
        The folder to write to.

    Raises
    ------
    TaskError
        Where no photograph of a class, or no test photograph, can be read.
    """
    made_by = {
        "program": f"jittor-tip-adapter {jclip.__version__}",
        "weights_sha256": encoder.weights_sha256,
        "precision": encoder.precision,
        "classes_sha256": fingerprint(task.classes),
    }
    text = artifacts.Text(
        encoder.prompts(prompts.sentences),
        np.array(task.classes),
        encoder.scale,
        {**made_by, "groups": prompts.groups, "prompts_sha256": fingerprint(prompts.sentences)},
    )
    selection = select(task, encoder, sampling, output)
    support, val = _training_files(task.train, selection, sampling, made_by)
    test, failures = _test_file(task.test, encoder, made_by)
    causes = {**_by_path(task.train, selection.failures), **_by_path(task.test, failures)}
    list_unreadable(output, causes)
    if not len(test.names):
        raise TaskError(
            f"none of the {len(task.test)} test photographs can be read; {output / UNREADABLE} has the causes"
        )
    extraction = Extraction(text, support, val, test)
    artifacts.write_together({output / f"{name}.npz": part for name, part in extraction._asdict().items()})
    return extraction


def select(task: Task, encoder: Encoder, sampling: Sampling, output: Path) -> Selection:
    """Choose the shots and the validation photographs, and encode them.

    Where one of them turns out to be unreadable, all are chosen again without it. The encoder's store makes the second
    choice cheap.

    Raises
    ------
    TaskError
        Where no photograph of a class can be read; the causes are then in unreadable.txt.
    """
    labels = _labels(task.train)
    pool, failures = subsample(labels, sampling.max_train, sampling.seed), {}
    while True:
        pool = _readable(task, pool, failures, output)
        selection = _try_selection(task.train, labels, pool, encoder, sampling)
        if not selection.failures:
            return selection._replace(failures=failures)
        failures.update(selection.failures)


def _try_selection(
    train: Sequence[Photo], labels: np.ndarray, pool: np.ndarray, encoder: Encoder, sampling: Sampling
) -> Selection:
    """Choose from the photographs at `pool` and encode them; of those that fail, only the failures mean anything."""
    features = None
    if sampling.select == "kmeans":  # the other ways need no features
        features, failures = _encode(train, pool, encoder)
        if failures:
            none = np.zeros(0, np.int64)
            return Selection(pool, none, none, features, features, failures)
    shots = pool[select_shots(labels[pool], sampling.shots, sampling.select, sampling.seed, features)]
    del features  # as large as the rows below; what of them is chosen comes from the store
    rest = np.setdiff1d(pool, shots)
    val = rest[subsample(labels[rest], sampling.max_val, sampling.seed)]
    chosen = np.union1d(shots, val)
    rows, failures = _encode(train, chosen, encoder)
    views, failed = encoder.views([train[i] for i in shots], sampling.views, sampling.seed)
    failures.update({int(shots[index]): cause for index, cause in failed.items()})
    is_shot = np.isin(chosen, shots)
    shot_rows = np.concatenate([rows[is_shot][:, None], views], axis=1)
    return Selection(pool, shots, val, shot_rows, rows[~is_shot], failures)


def _encode(train: Sequence[Photo], indices: np.ndarray, encoder: Encoder) -> tuple[np.ndarray, dict[int, str]]:
    """Return the rows of the photographs at `indices`, and the failures by index in `train`."""
    rows, failures = encoder.photos([train[i] for i in indices], "train", "train")
    return rows, {int(indices[i]): cause for i, cause in failures.items()}


def _readable(task: Task, pool: np.ndarray, failures: dict[int, str], output: Path) -> np.ndarray:
    """Return `pool` without the failures; raise TaskError where a class has lost its last photograph."""
    left = np.setdiff1d(pool, list(failures))
    emptied = {task.train[i].label for i in failures} - {task.train[i].label for i in left}
    if emptied:
        list_unreadable(output, _by_path(task.train, failures))
        raise TaskError(
            f"class {task.classes[min(emptied)]!r}: none of its training photographs that were looked at can be read; "
            f"{output / UNREADABLE} has the causes: mend them, or leave the class without photographs"
        )
    return left


def _training_files(
    train: Sequence[Photo], selection: Selection, sampling: Sampling, made_by: dict
) -> tuple[artifacts.Support, artifacts.Split | None]:
    shots, val = ([train[i] for i in indices] for indices in (selection.shots, selection.val))
    meta = {
        **made_by,
        "shots": sampling.shots,
        "select": sampling.select,
        "seed": sampling.seed,
        "selection_sha256": _selection_sha256(train, selection, sampling),
    }
    support = artifacts.Support(
        selection.shot_rows, _labels(shots), _names(shots), {**meta, "views": list(sampling.views)}
    )
    return support, artifacts.Split(selection.val_rows, _labels(val), _names(val), meta) if val else None


def _selection_sha256(train: Sequence[Photo], selection: Selection, sampling: Sampling) -> str:
    """Return what the files of one selection share and no others have: those of two may share photographs."""
    chosen = np.concatenate([selection.shots, selection.val])
    rows = np.concatenate([selection.shot_rows[:, 0], selection.val_rows])[np.argsort(chosen)]
    return fingerprint(
        [[train[i].name, train[i].label] for i in selection.pool],
        sampling.shots,
        sampling.select,
        sampling.seed,
        sampling.max_train,
        sampling.max_val,
        hashlib.sha256(rows).hexdigest(),
    )


def _test_file(photos: Sequence[Photo], encoder: Encoder, made_by: dict) -> tuple[artifacts.Split, dict[int, str]]:
    """Return the test photographs that can be read, and the failures; meta names these, for predict.py to answer."""
    rows, failures = encoder.photos(photos, "test", "test")
    readable = [i for i in range(len(photos)) if i not in failures]
    shown = [photos[i] for i in readable]
    meta = {
        **made_by,
        "list_sha256": fingerprint([photo.name for photo in photos]),
        "unreadable": {photos[i].name: cause for i, cause in failures.items()},
    }
    return artifacts.Split(rows[readable], _labels(shown), _names(shown), meta), failures


def list_unreadable(folder: Path, causes: dict[str, str]) -> None:
    """Write unreadable.txt, a line "path: cause" for each photograph, and log the first; remove it where none is.

    Parameters
    ----------
    folder : Path
    causes : dict of str to str
        Path of each photograph that cannot be read, and why.
    """
    path = folder / UNREADABLE
    lines = [bounded.one_line(f"{photo}: {cause}") for photo, cause in causes.items()]
    if not lines:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    head = f"{len(lines)} photographs cannot be read and are left out; {path} lists them:"
    logger.warning("\n  ".join([head, *preview(lines)]))


def fingerprint(*values) -> str:
    """Return the SHA-256 of JSON-like values: two runs with the same one worked from the same lists and settings."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


def _by_path(photos: Sequence[Photo], failures: dict[int, str]) -> dict[str, str]:
    return {str(photos[i].path): cause for i, cause in failures.items()}


def _labels(photos: Sequence[Photo]) -> np.ndarray:
    return np.array([photo.label for photo in photos], np.int64)


def _names(photos: Sequence[Photo]) -> np.ndarray:
    return np.array([photo.name for photo in photos], np.str_)
