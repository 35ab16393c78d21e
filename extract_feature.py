"""Photographs and prompts -> features: output/text.npz, support.npz, val.npz and test.npz.

Reads the contest's lists (classes_b.txt, train.txt, TestSetB) or plain folders (train/CLASS/*, test/* or
test/CLASS/*). Of each class's training photographs a few become the shots, with augmented views; the rest is the
validation set, on which train_adapter.py makes its choices. Stopped and started again, it goes on where it was; what is
unchanged since an earlier run is not encoded again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import augment
import jclip
from fewshot import artifacts, cli, data, prompts, support
from fewshot.encoder import Encoder, check_lengths
from fewshot.errors import TaskError
from fewshot.files import written_whole
from jclip import bounded
from jclip.features import IMAGE_BATCH

FIRST = 5  # so many unreadable photographs are said, the rest is listed in a file


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--data", "--weights", "--output", "--split", "--device", "--precision", "--seed")
    p.add_argument(
        "--prompts",
        type=Path,
        default=prompts.FOLDER,
        metavar="DIR",
        help="folder of templates.json, names.json and GROUP_prompt.json (default: the program's own)",
    )
    p.add_argument(
        "--shots",
        type=cli.at_least(1),
        default=4,
        metavar="K",
        help="training photographs per class to learn from (default: 4)",
    )
    p.add_argument(
        "--views",
        type=augment.parse_views,
        default=augment.DEFAULT_VIEWS,
        metavar="LIST",
        help=f"views of each shot, from {', '.join(augment.VIEWS)}; crop:7 is seven crops; plain comes first "
        f"(default: {augment.DEFAULT_VIEWS})",
    )
    p.add_argument(
        "--select",
        choices=support.SELECT,
        default="kmeans",
        help="how the shots are chosen (default: kmeans, the photographs nearest the K centres)",
    )
    p.add_argument(
        "--max-train",
        type=cli.at_least(1),
        metavar="N",
        help="look at no more than N training photographs per class, drawn with --seed (default: all)",
    )
    p.add_argument(
        "--max-val",
        type=cli.at_least(0),
        metavar="N",
        help="keep no more than N validation photographs per class, drawn with --seed (default: all that are left)",
    )
    p.add_argument(
        "--batch-size",
        type=cli.at_least(1),
        metavar="N",
        help="photographs encoded at a time (default: {cpu}, on CUDA {cuda})".format(**IMAGE_BATCH),
    )
    p.add_argument(
        "--force", action="store_true", help="encode everything anew, also what is unchanged since an earlier run"
    )
    p.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first photograph that cannot be read (default: leave it out and say so)",
    )
    return p.parse_args(argv)


@cli.script
def main(argv=None):
    a = parse(argv)
    task = data.read_task(a.data, a.split)
    worded = read_prompts(task.classes, a.prompts)
    with cli.locked(a.output):
        extract(a, task, worded)


def extract(a, task: data.Task, worded: prompts.Prompts) -> None:
    """Encode all that the task needs, then write the files, all or none."""
    encoder = Encoder.load(a.weights, a.device, a.batch_size, a.output / "store", a.strict, a.precision)
    if a.force:
        encoder.store.clear()
    made_by = {
        "program": f"jittor-tip-adapter {jclip.__version__}",
        "weights_sha256": encoder.weights_sha256,
        "precision": a.precision,
        "classes_sha256": fingerprint(task.classes),
    }
    text = artifacts.Text(
        encoder.prompts(worded.sentences),
        np.array(task.classes),
        encoder.scale,
        {**made_by, "groups": worded.groups, "prompts_sha256": fingerprint(worded.sentences)},
    )
    shots, val, unreadable = train_files(a, task, encoder, made_by)
    test, failed = test_file(task.test, encoder, made_by)
    report(a.output, {**unreadable, **failed})
    if not len(test.names):
        raise TaskError(
            f"none of the {len(task.test)} test photographs can be read; {a.output / 'unreadable.txt'} has the causes"
        )
    artifacts.write_together(
        {
            a.output / "text.npz": text,
            a.output / "support.npz": shots,
            a.output / "val.npz": val,
            a.output / "test.npz": test,
        }
    )
    encoder.store.tidy()

    computed, kept = encoder.store.tally()
    print(
        f"{a.output}: {len(shots.names)} shots of {len(np.unique(shots.labels))} classes in {len(a.views)} views, "
        f"{len(val.names) if val else 0} validation photographs"
    )
    print(
        f"{a.output}: text of {len(task.classes)} classes and {sum(map(len, worded.sentences))} sentences, "
        f"{len(task.test)} test photographs"
    )
    print(
        f"{a.output}: encoded {computed}, kept {kept} photographs, views and sentences. Next: python train_adapter.py"
    )


def read_prompts(classes: Sequence[str], folder: Path) -> prompts.Prompts:
    """Each class's sentences, none too long for CLIP; says on stderr, once, what the prompt files lack and what in them
    matches no class."""
    read = prompts.read(classes, folder)
    check_lengths(classes, read, folder)
    if read.without:
        print(
            f"{len(read.without)} of {len(classes)} classes have no sentences of their own in {folder} and live from "
            f"their group's templates "
            f"(the first: {read.without[0]})",
            file=sys.stderr,
        )
    if read.strangers:
        print(
            f"{len(read.strangers)} entries in {folder} match no class here (the first: {read.strangers[0]})",
            file=sys.stderr,
        )
    return read


class Selection(NamedTuple):
    """What has become of the training photographs, by their places in the list. N shots, V views, D feature width."""

    pool: np.ndarray  # all that were looked at and not found to be unreadable
    shots: np.ndarray  # (N,)
    val: np.ndarray
    rows: np.ndarray  # float32 (len(train), D): of shots and validation photographs, others may be NaN
    views: np.ndarray  # float32 (N, V - 1, D), of the shots
    unreadable: dict[int, str]  # why some cannot be read


def train_files(
    a, task: data.Task, encoder: Encoder, made_by: dict
) -> tuple[artifacts.Support, artifacts.Split | None, dict[str, str]]:
    """The shots with their views, the validation photographs if there are any, and why others, by path, cannot be
    read."""
    chosen = select_shots(a, task, encoder)
    shots, val = ([task.train[i] for i in places] for places in (chosen.shots, chosen.val))
    made_by = {
        **made_by,
        "shots": a.shots,
        "select": a.select,
        "seed": a.seed,
        "selection_sha256": selection_sha256(a, task.train, chosen),
    }
    features = np.concatenate([chosen.rows[chosen.shots][:, None], chosen.views], axis=1)
    return (
        artifacts.Support(features, labels_of(shots), names_of(shots), {**made_by, "views": a.views}),
        split_of(val, chosen.rows[chosen.val], made_by) if val else None,
        causes(task.train, chosen.unreadable),
    )


def select_shots(a, task: data.Task, encoder: Encoder) -> Selection:
    """Choose the shots and the validation photographs, and encode what is needed for it.

    Where one of them turns out to be unreadable, the choice is made again without it. Raises TaskError where a class
    loses its last.
    """
    labels = labels_of(task.train)
    rows = np.full((len(labels), encoder.width), np.nan, np.float32)
    pool, unreadable = support.looked_at(labels, a.max_train, a.seed), {}
    lost = (
        encode(task.train, pool, rows, encoder) if a.select == "kmeans" else {}
    )  # the other ways need no features to choose by
    while True:
        unreadable.update(lost)
        pool = readable(task, pool, unreadable, a.output)
        shots = pool[support.choose(labels[pool], a.shots, a.select, a.seed, rows[pool])]
        rest = np.setdiff1d(pool, shots)
        val = rest[support.looked_at(labels[rest], a.max_val, a.seed)]
        lost = encode(task.train, np.union1d(shots, val), rows, encoder)
        views, failed = encoder.views([task.train[i] for i in shots], a.views, a.seed)
        lost.update({int(shots[place]): cause for place, cause in failed.items()})
        if not lost:
            return Selection(pool, shots, val, rows, views, unreadable)


def encode(photos: Sequence[data.Photo], places: np.ndarray, rows: np.ndarray, encoder: Encoder) -> dict[int, str]:
    """Put the rows of the photographs at `places` into `rows`, where they are not yet; why some, by place, cannot be
    read."""
    absent = places[np.isnan(rows[places, 0])]
    rows[absent], failed = encoder.photos([photos[i] for i in absent], "train", "train")
    return {int(absent[i]): cause for i, cause in failed.items()}


def readable(task: data.Task, pool: np.ndarray, unreadable: dict[int, str], folder: Path) -> np.ndarray:
    """`pool` without the unreadable ones; where a class has lost its last, raises TaskError and leaves a report in
    `folder`."""
    left = np.setdiff1d(pool, list(unreadable))
    emptied = {task.train[i].label for i in unreadable} - {task.train[i].label for i in left}
    if emptied:
        report(folder, causes(task.train, unreadable))
        raise TaskError(
            f"class {task.classes[min(emptied)]!r}: none of its training photographs that were looked at can be read; "
            f"{folder / 'unreadable.txt'} has the causes: mend them, or leave the class without photographs"
        )
    return left


def selection_sha256(a, train: Sequence[data.Photo], chosen: Selection) -> str:
    """The same for all files of one choice, and for no others: support and validation of different choices may share
    photographs."""
    kept = np.union1d(chosen.shots, chosen.val)
    return fingerprint(
        [[train[i].name, train[i].label] for i in chosen.pool],
        a.shots,
        a.select,
        a.seed,
        a.max_train,
        a.max_val,
        hashlib.sha256(chosen.rows[kept]).hexdigest(),
    )


def test_file(photos: Sequence[data.Photo], encoder: Encoder, made_by: dict) -> tuple[artifacts.Split, dict[str, str]]:
    """The test photographs that can be read, and why others, by path, cannot; these stand in its meta, for predict.py
    to give them a line, too."""
    rows, failed = encoder.photos(photos, "test", "test")
    well = [i for i in range(len(photos)) if i not in failed]
    meta = {
        **made_by,
        "list_sha256": fingerprint([photo.name for photo in photos]),
        "unreadable": {photos[i].name: cause for i, cause in failed.items()},
    }
    return split_of([photos[i] for i in well], rows[well], meta), causes(photos, failed)


def causes(photos: Sequence[data.Photo], failed: dict[int, str]) -> dict[str, str]:
    """Why photographs cannot be read, by path instead of by place."""
    return {str(photos[i].path): cause for i, cause in failed.items()}


def report(folder: Path, unreadable: dict[str, str]) -> None:
    """Put what cannot be read into unreadable.txt, one "path: cause" a line, and say the first few."""
    path = folder / "unreadable.txt"
    lines = [bounded.one_line(f"{photo}: {cause}") for photo, cause in unreadable.items()]
    if not lines:
        path.unlink(missing_ok=True)
        return
    with written_whole(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    print(
        f"{len(lines)} photographs cannot be read and are left out; {path} lists them:",
        *lines[:FIRST],
        *["…"] * (len(lines) > FIRST),
        sep="\n  ",
        file=sys.stderr,
    )


def split_of(photos: Sequence[data.Photo], rows: np.ndarray, meta: dict) -> artifacts.Split:
    return artifacts.Split(rows, labels_of(photos), names_of(photos), meta)


def labels_of(photos: Sequence[data.Photo]) -> np.ndarray:
    return np.array([photo.label for photo in photos], np.int64)


def names_of(photos: Sequence[data.Photo]) -> np.ndarray:
    return np.array([photo.name for photo in photos], np.str_)


def fingerprint(*values) -> str:
    """SHA-256 of JSON-like values: two runs with the same one worked from the same lists and settings."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
