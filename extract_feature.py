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
from pathlib import Path
from typing import Sequence

import numpy as np

import augment
import bounded
import cli
import jclip
from encoder import Encoder
from fewshot import artifacts, data, prompts, support
from fewshot.errors import TaskError
from jclip import tokenizer
from jclip.errors import ClipError

FIRST = 5  # so many unreadable photographs are said, the rest is listed in a file


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--data", "--weights", "--output", "--split", "--device", "--seed")
    p.add_argument("--prompts", type=Path, default=prompts.FOLDER, metavar="DIR", help="folder of templates.json, names.json and GROUP_prompt.json (default: the program's own)")
    p.add_argument("--shots", type=cli.at_least(1), default=4, metavar="K", help="training photographs per class to learn from (default: 4)")
    p.add_argument("--views", type=augment.parse_views, default=augment.DEFAULT_VIEWS, metavar="LIST",
                   help=f"views of each shot, from {', '.join(augment.VIEWS)}; crop:7 is seven crops; plain comes first (default: {augment.DEFAULT_VIEWS})")
    p.add_argument("--select", choices=support.SELECT, default="kmeans", help="how the shots are chosen (default: kmeans, the photographs nearest the K centres)")
    p.add_argument("--max-train", type=cli.at_least(1), metavar="N", help="look at no more than N training photographs per class, drawn with --seed (default: all)")
    p.add_argument("--max-val", type=cli.at_least(0), metavar="N", help="keep no more than N validation photographs per class, drawn with --seed (default: all that are left)")
    p.add_argument("--batch-size", type=cli.at_least(1), default=32, metavar="N", help="photographs encoded at a time (default: 32)")
    p.add_argument("--force", action="store_true", help="encode everything anew, also what is unchanged since an earlier run")
    p.add_argument("--strict", action="store_true", help="stop at the first photograph that cannot be read (default: leave it out and say so)")
    return p.parse_args(argv)


@cli.script
def main(argv=None):
    a = parse(argv)
    views = a.views
    task = data.read_task(a.data, a.split)
    worded = read_prompts(task.classes, a.prompts)
    with cli.locked(a.output):
        extract(a, views, task, worded)


def extract(a, views: list[str], task: data.Task, worded: prompts.Prompts) -> None:
    """Encode all that the task needs, then write the files, all or none."""
    encoder = Encoder.load(a.weights, a.device, a.batch_size, a.output / "store", a.strict)
    if a.force:
        encoder.store.clear()
    made_by = {"program": f"jittor-tip-adapter {jclip.__version__}", "weights_sha256": encoder.weights_sha256,
               "classes_sha256": fingerprint(task.classes)}
    text = artifacts.Text(encoder.prompts(worded.sentences), np.array(task.classes), encoder.scale,
                          {**made_by, "groups": worded.groups, "prompts_sha256": fingerprint(worded.sentences)})
    unreadable: dict[str, str] = {}
    shots, val = train_files(a, task, views, encoder, made_by, unreadable)
    test = test_file(a, task.test, encoder, made_by, unreadable)
    report(a.output, unreadable)
    artifacts.write_together({a.output / "text.npz": text, a.output / "support.npz": shots, a.output / "val.npz": val, a.output / "test.npz": test})
    encoder.store.tidy()

    computed, kept = encoder.store.tally()
    print(f"{a.output}: {len(shots.names)} shots of {len(np.unique(shots.labels))} classes in {len(views)} views, {len(val.names) if val else 0} validation photographs")
    print(f"{a.output}: text of {len(task.classes)} classes and {sum(map(len, worded.sentences))} sentences, {len(task.test)} test photographs")
    print(f"{a.output}: encoded {computed}, kept {kept} photographs, views and sentences. Next: python train_adapter.py")


def read_prompts(classes: Sequence[str], folder: Path) -> prompts.Prompts:
    """Each class's sentences, none too long for CLIP; says on stderr, once, what the prompt files lack and what in them matches no class."""
    read = prompts.read(classes, folder)
    check_lengths(classes, read, folder)
    if read.without:
        print(f"{len(read.without)} of {len(classes)} classes have no sentences of their own in {folder} and live from their group's templates "
              f"(the first: {read.without[0]})", file=sys.stderr)
    if read.strangers:
        print(f"{len(read.strangers)} entries in {folder} match no class here (the first: {read.strangers[0]})", file=sys.stderr)
    return read


def check_lengths(classes: Sequence[str], read: prompts.Prompts, folder: Path) -> None:
    """Raise TaskError at the first sentence that is too long, before a model is loaded; 5,000 sentences take 0.3 s."""
    for name, group, templates, sentences in zip(classes, read.groups, read.templates, read.sentences):
        for place, sentence in enumerate(sentences):
            try:
                tokenizer.tokenize(sentence)
            except ClipError as error:
                if place < templates:
                    file, remedy = prompts.TEMPLATES, f"shorten the template, or give the class a shorter name in {folder / prompts.NAMES}"
                else:
                    file, remedy = f"{group}_prompt.json", "shorten it"
                tokens = str(error).partition(":")[0]  # how many there are, and how many there may be
                raise TaskError(f"{folder / file}: class {name[:60]!r}: {tokens}: it begins {sentence[:60]!r}; {remedy}") from None


def train_files(a, task: data.Task, views: list[str], encoder: Encoder, made_by: dict, unreadable: dict[str, str]) -> tuple:
    """Choose the shots, encode their views and the validation photographs: a Support, and a Split or None.

    Where one of them turns out to be unreadable, the choice is made again without it.
    """
    train, labels = task.train, np.array([photo.label for photo in task.train], np.int64)
    rows = np.full((len(train), encoder.width), np.nan, np.float32)
    pool, lost = support.looked_at(labels, a.max_train, a.seed), {}
    while True:
        if a.select == "kmeans":  # needs the features of all; the other ways only those that are kept
            lost = encode(train, pool, rows, encoder)
            pool = readable(a, task, pool, lost, unreadable)
        shots = pool[support.choose(labels[pool], a.shots, a.select, a.seed, rows[pool])]
        rest = np.setdiff1d(pool, shots)
        val = rest[support.looked_at(labels[rest], a.max_val, a.seed)]
        kept = np.union1d(shots, val)
        lost = encode(train, kept, rows, encoder)
        augmented, failed = encoder.views([train[i] for i in shots], views, a.seed)
        lost.update({int(shots[place]): cause for place, cause in failed.items()})
        if not lost:
            break
        pool = readable(a, task, pool, lost, unreadable)

    made_by = {**made_by, "shots": a.shots, "select": a.select, "seed": a.seed, "selection_sha256": fingerprint(
        [[train[i].name, train[i].label] for i in pool], a.shots, a.select, a.seed, a.max_train, a.max_val, hashlib.sha256(rows[kept]).hexdigest())}
    shot_photos = [train[i] for i in shots]
    cache = artifacts.Support(np.concatenate([rows[shots][:, None], augmented], axis=1), labels[shots], names_of(shot_photos), {**made_by, "views": views})
    return cache, split_of([train[i] for i in val], rows[val], made_by) if len(val) else None


def encode(photos: Sequence[data.Photo], places: np.ndarray, rows: np.ndarray, encoder: Encoder) -> dict[int, str]:
    """Put the rows of the photographs at `places` into `rows`; why some of them, by place, cannot be read."""
    rows[places], failed = encoder.photos([photos[i] for i in places], "train", "train")
    return {int(places[i]): cause for i, cause in failed.items()}


def readable(a, task: data.Task, pool: np.ndarray, lost: dict[int, str], unreadable: dict[str, str]) -> np.ndarray:
    """`pool` without the lost ones, which are noted in `unreadable`; raises TaskError where a class loses its last."""
    unreadable.update({str(task.train[i].path): cause for i, cause in lost.items()})
    left = np.setdiff1d(pool, list(lost))
    emptied = {task.train[i].label for i in lost} - {task.train[i].label for i in left}
    if emptied:
        report(a.output, unreadable)
        raise TaskError(f"class {task.classes[min(emptied)]!r}: none of its training photographs that were looked at can be read; "
                        f"{a.output / 'unreadable.txt'} has the causes: mend them, or leave the class without photographs")
    return left


def test_file(a, photos: Sequence[data.Photo], encoder: Encoder, made_by: dict, unreadable: dict[str, str]) -> artifacts.Split:
    """The test photographs that can be read; the others stand in its meta, for predict.py to give them a line, too."""
    rows, failed = encoder.photos(photos, "test", "test")
    unreadable.update({str(photos[i].path): cause for i, cause in failed.items()})
    if len(failed) == len(photos):
        report(a.output, unreadable)
        raise TaskError(f"none of the {len(photos)} test photographs can be read; {a.output / 'unreadable.txt'} has the causes")
    well = [i for i in range(len(photos)) if i not in failed]
    return split_of([photos[i] for i in well], rows[well], {**made_by, "list_sha256": fingerprint([photo.name for photo in photos]),
                                                           "unreadable": {photos[i].name: cause for i, cause in failed.items()}})


def report(folder: Path, unreadable: dict[str, str]) -> None:
    """Put what cannot be read into unreadable.txt, one "path: cause" a line, and say the first few."""
    path = folder / "unreadable.txt"
    lines = [bounded.one_line(f"{photo}: {cause}") for photo, cause in unreadable.items()]
    if not lines:
        path.unlink(missing_ok=True)
        return
    with artifacts.written_whole(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    print(f"{len(lines)} photographs cannot be read and are left out; {path} lists them:", *lines[:FIRST], *["…"] * (len(lines) > FIRST), sep="\n  ", file=sys.stderr)


def split_of(photos: Sequence[data.Photo], rows: np.ndarray, meta: dict) -> artifacts.Split:
    return artifacts.Split(rows, np.array([photo.label for photo in photos], np.int64), names_of(photos), meta)


def names_of(photos: Sequence[data.Photo]) -> np.ndarray:
    return np.array([photo.name for photo in photos], np.str_)


def fingerprint(*values) -> str:
    """SHA-256 of JSON-like values: two runs with the same one worked from the same lists and settings."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
