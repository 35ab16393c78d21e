"""Extract the features of a task and write them to text.npz, support.npz, val.npz and test.npz."""

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
from jclip.files import atomic_write
from jclip.paths import expand

from . import artifacts
from .data import Photo, Task
from .encoder import PLAIN, Encoder
from .errors import TaskError, preview
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
        Number of shots per class.
    select : {"kmeans", "first", "random"}
        How the shots are chosen.
    views : sequence of str
        Names of `augment.VIEWS`; "plain" first.
    max_train : int or None
        Maximum number of training photographs per class that are considered; None for no limit.
    max_val : int or None
        Maximum number of photographs per class that are kept for validation; None for no limit.
    seed : int
    """

    shots: int = 4
    select: str = "kmeans"
    views: Sequence[str] = PLAIN
    max_train: int | None = None
    max_val: int | None = None
    seed: int = 1


class Extraction(NamedTuple):
    """The features of a task; val is None if no photograph is left for validation."""

    text: artifacts.Text
    support: artifacts.Support
    val: artifacts.Split | None
    test: artifacts.Split


class Selection(NamedTuple):
    """The chosen training photographs as indices into the training list: N shots, V views each, M for validation."""

    pool: np.ndarray  # (P,), all considered photographs except known unreadable ones
    shots: np.ndarray  # (N,)
    val: np.ndarray  # (M,)
    shot_rows: np.ndarray  # float32 (N, V, D)
    val_rows: np.ndarray  # float32 (M, D)
    failures: dict[int, str]  # {index of an unreadable photograph: cause}


def extract(
    task: Task, prompts: Prompts, encoder: Encoder, sampling: Sampling, output: Path, test_views: Sequence[str] = PLAIN
) -> Extraction:
    """Encode a task, write its .npz files (all or none) and return their content.

    Unreadable photographs are left out and listed in unreadable.txt.

    Parameters
    ----------
    task : Task
    prompts : Prompts
        The sentences of the task's classes.
    encoder : Encoder
        Must have a store, so that nothing is encoded twice.
    sampling : Sampling
    output : Path
        The folder to write to.
    test_views : sequence of str
        Names of `augment.ALL_VIEWS`; the feature of a test photograph is the unit mean of these views.

    Raises
    ------
    TaskError
        If all photographs of a class, or all test photographs, are unreadable, or if the encoder is strict and one is.
    ClipError
        If a sentence is too long.
    """
    output = expand(output)
    provenance = {
        "program": f"jittor-tip-adapter {jclip.__version__}",
        **encoder.provenance,
        "precision": encoder.precision,
        "classes_sha256": fingerprint(task.classes),
    }
    text = artifacts.Text(
        encoder.encode_prompts(prompts.sentences),
        np.array(task.classes),
        encoder.scale,
        {**provenance, "groups": prompts.groups, "prompts_sha256": fingerprint(prompts.sentences)},
    )
    selection = choose_photographs(task, encoder, sampling, output)
    support, val = _training_artifacts(task.train, selection, sampling, provenance)
    test, failures = _test_split(task.test, encoder, test_views, provenance)
    causes = {**_by_path(task.train, selection.failures), **_by_path(task.test, failures)}
    list_unreadable(output, causes)
    if not len(test.names):
        raise TaskError(
            f"none of the {len(task.test)} test photographs can be read; {output / UNREADABLE} has the causes"
        )
    extraction = Extraction(text, support, val, test)
    artifacts.write_together({output / f"{name}.npz": part for name, part in extraction._asdict().items()})
    return extraction


def choose_photographs(task: Task, encoder: Encoder, sampling: Sampling, output: Path) -> Selection:
    """Choose and encode the shots and the validation photographs.

    If one of them is unreadable, all are chosen again without it. The encoder's store makes the repetition cheap.

    Raises
    ------
    TaskError
        If all photographs of a class are unreadable; unreadable.txt then lists the causes. If the encoder is strict,
        already if one photograph is unreadable.
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
    """Choose from the photographs at the indices `pool` and encode them.

    If a photograph is unreadable, only the field `failures` of the result is valid.
    """
    features = None
    if sampling.select == "kmeans":  # the other selections need no features
        features, failures = _encode(train, pool, encoder)
        if failures:
            empty = np.zeros(0, np.int64)
            return Selection(pool, empty, empty, features, features, failures)
    shots = pool[select_shots(labels[pool], sampling.shots, sampling.select, sampling.seed, features)]
    # frees memory: `rows` below can be as large, and the chosen rows are read again from the store
    del features
    rest = np.setdiff1d(pool, shots)
    val = rest[subsample(labels[rest], sampling.max_val, sampling.seed)]
    chosen = np.union1d(shots, val)
    rows, failures = _encode(train, chosen, encoder)
    views, view_failures = encoder.encode_views([train[i] for i in shots], sampling.views, sampling.seed)
    failures.update({int(shots[index]): cause for index, cause in view_failures.items()})
    is_shot = np.isin(chosen, shots)
    shot_rows = np.concatenate([rows[is_shot][:, None], views], axis=1)
    return Selection(pool, shots, val, shot_rows, rows[~is_shot], failures)


def _encode(train: Sequence[Photo], indices: np.ndarray, encoder: Encoder) -> tuple[np.ndarray, dict[int, str]]:
    """Return the rows of the photographs at `indices`, and the failures as {index in `train`: cause}."""
    rows, failures = encoder.encode_photos([train[i] for i in indices], "train", "train")
    return rows, {int(indices[i]): cause for i, cause in failures.items()}


def _readable(task: Task, pool: np.ndarray, failures: dict[int, str], output: Path) -> np.ndarray:
    """Return `pool` without the failures; raise TaskError if that leaves a class without photographs."""
    left = np.setdiff1d(pool, list(failures))
    emptied = {task.train[i].label for i in failures} - {task.train[i].label for i in left}
    if emptied:
        list_unreadable(output, _by_path(task.train, failures))
        raise TaskError(
            f"class {task.classes[min(emptied)]!r}: none of its training photographs that were considered can be read; "
            f"{output / UNREADABLE} has the causes; correct them, or leave the class without photographs"
        )
    return left


def _training_artifacts(
    train: Sequence[Photo], selection: Selection, sampling: Sampling, provenance: dict
) -> tuple[artifacts.Support, artifacts.Split | None]:
    """Return the Support, and the Split for validation or None."""
    shots, val = ([train[i] for i in indices] for indices in (selection.shots, selection.val))
    meta = {
        **provenance,
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
    """Return the fingerprint of a selection; support.npz and val.npz fit only if it is equal in both."""
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


def _test_split(
    photos: Sequence[Photo], encoder: Encoder, views: Sequence[str], provenance: dict
) -> tuple[artifacts.Split, dict[int, str]]:
    """Return the Split of the readable test photographs and the failures.

    The meta of the Split lists the failures too, for predict.py, and the views unless they are the plain photographs.
    """
    rows, failures = encoder.encode_means(photos, views, "test", "test")
    readable = [i for i in range(len(photos)) if i not in failures]
    kept = [photos[i] for i in readable]
    meta = {
        **provenance,
        "list_sha256": fingerprint([photo.name for photo in photos]),
        "unreadable": {photos[i].name: cause for i, cause in failures.items()},
        **({"views": list(views)} if tuple(views) != PLAIN else {}),
    }
    return artifacts.Split(rows[readable], _labels(kept), _names(kept), meta), failures


def list_unreadable(folder: Path, causes: dict[str, str]) -> None:
    """Write unreadable.txt, one line "path: cause" per photograph, and log its first lines; remove it if empty.

    Parameters
    ----------
    folder : Path
    causes : dict of str to str
        {path of an unreadable photograph: cause}.
    """
    path = folder / UNREADABLE
    lines = [bounded.one_line(f"{photo}: {cause}") for photo, cause in causes.items()]
    if not lines:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    head = f"{len(lines)} photographs cannot be read and are left out; {path} lists them:"
    logger.warning("\n  ".join([head, *preview(lines)]))


def fingerprint(*values) -> str:
    """Return the hexadecimal SHA-256 of values that json.dumps accepts."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


def _by_path(photos: Sequence[Photo], failures: dict[int, str]) -> dict[str, str]:
    return {str(photos[i].path): cause for i, cause in failures.items()}


def _labels(photos: Sequence[Photo]) -> np.ndarray:
    return np.array([photo.label for photo in photos], np.int64)


def _names(photos: Sequence[Photo]) -> np.ndarray:
    return np.array([photo.name for photo in photos], np.str_)
