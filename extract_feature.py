"""Photographs and prompts -> features: output/text.npz, support.npz, val.npz and test.npz.

Reads the contest's lists (classes_b.txt, train.txt, TestSetB) or plain folders (train/CLASS/*, test/* or
test/CLASS/*). Of each class's training photographs a few become the shots, with augmented views; the rest is the
validation set, on which train_adapter.py makes its choices.
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
import cli
import jclip
from encoder import Encoder
from fewshot import artifacts, data, prompts, support


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--data", "--weights", "--output", "--split", "--device", "--seed")
    p.add_argument("--prompts", type=Path, default=prompts.FOLDER, metavar="DIR", help="templates.json and GROUP_prompt.json (default: the program's own)")
    p.add_argument("--shots", type=cli.at_least(1), default=4, metavar="K", help="training photographs a class that become the cache (default: 4)")
    p.add_argument("--views", default=augment.DEFAULT_VIEWS, metavar="LIST",
                   help=f"views of each shot, from {', '.join(augment.VIEWS)}; crop:7 is seven crops; plain comes first (default: {augment.DEFAULT_VIEWS})")
    p.add_argument("--select", choices=support.SELECT, default="kmeans", help="how the shots are chosen (default: kmeans, the photographs nearest the K centres)")
    p.add_argument("--max-train", type=cli.at_least(1), metavar="N", help="look at N training photographs a class, drawn with --seed (default: at all)")
    p.add_argument("--max-val", type=cli.at_least(0), metavar="N", help="keep N validation photographs a class, drawn with --seed (default: all that are left)")
    p.add_argument("--batch-size", type=cli.at_least(1), default=32, metavar="N", help="photographs encoded at a time (default: 32)")
    return p.parse_args(argv)


@cli.script
def main(argv=None):
    a = parse(argv)
    views = augment.parse_views(a.views)
    task = data.read_task(a.data, a.split)
    worded = read_prompts(task.classes, a.prompts)
    encoder = Encoder.load(a.weights, a.device, a.batch_size)
    a.output.mkdir(parents=True, exist_ok=True)
    made_by = {"program": f"jittor-tip-adapter {jclip.__version__}", "weights_sha256": encoder.weights_sha256,
               "classes_sha256": fingerprint(task.classes)}

    text = artifacts.Text(encoder.prompts(worded.sentences), np.array(task.classes), encoder.scale,
                          {**made_by, "groups": worded.groups, "prompts_sha256": fingerprint(worded.sentences)})
    artifacts.write(a.output / "text.npz", text)
    write_shots(a, task.train, views, encoder, made_by)
    rows = encoder.photos([photo.path for photo in task.test], "test")
    artifacts.write(a.output / "test.npz", split_of(task.test, rows, {**made_by, "list_sha256": fingerprint([p.name for p in task.test])}))
    print(f"{a.output}: text of {len(task.classes)} classes and {sum(map(len, worded.sentences))} sentences, {len(task.test)} test photographs. "
          f"Next: python train_adapter.py")


def read_prompts(classes: Sequence[str], folder: Path) -> prompts.Prompts:
    """Each class's sentences; says on stderr, once, what the prompt files lack and what in them matches no class."""
    read = prompts.read(classes, folder)
    if read.without:
        print(f"{len(read.without)} of {len(classes)} classes have no sentences of their own in {folder} and live from their group's templates "
              f"(the first: {read.without[0]})", file=sys.stderr)
    if read.strangers:
        print(f"{len(read.strangers)} entries in {folder} match no class here (the first: {read.strangers[0]})", file=sys.stderr)
    return read


def write_shots(a, train: Sequence[data.Photo], views: list[str], encoder: Encoder, made_by: dict) -> None:
    """Choose the shots, encode their views and the validation photographs, write support.npz and val.npz."""
    labels = np.array([photo.label for photo in train], np.int64)
    pool = support.looked_at(labels, a.max_train, a.seed)
    rows = np.zeros((len(train), encoder.width), np.float32)
    if a.select == "kmeans":  # needs the features of all; the other ways only those that are kept
        rows[pool] = encoder.photos([train[i].path for i in pool], "train")
    shots = pool[support.choose(labels[pool], a.shots, a.select, a.seed, rows[pool])]
    rest = np.setdiff1d(pool, shots)
    val = rest[support.looked_at(labels[rest], a.max_val, a.seed)]
    if a.select != "kmeans":
        kept = np.union1d(shots, val)
        rows[kept] = encoder.photos([train[i].path for i in kept], "train")

    shot_photos = [train[i] for i in shots]
    augmented = encoder.views(shot_photos, views, a.seed)
    made_by = {**made_by, "shots": a.shots, "select": a.select, "seed": a.seed, "selection_sha256": fingerprint(
        [[photo.name, photo.label] for photo in train], a.shots, a.select, a.seed, a.max_train, a.max_val)}
    (a.output / "val.npz").unlink(missing_ok=True)  # one of an earlier choice may hold today's shots
    artifacts.write(a.output / "support.npz", artifacts.Support(
        np.concatenate([rows[shots][:, None], augmented], axis=1), labels[shots], names_of(shot_photos), {**made_by, "views": views}))
    if len(val):
        artifacts.write(a.output / "val.npz", split_of([train[i] for i in val], rows[val], made_by))
    print(f"{a.output}: {len(shots)} shots of {len(np.unique(labels[shots]))} classes in {len(views)} views, {len(val)} validation photographs")


def split_of(photos: Sequence[data.Photo], rows: np.ndarray, meta: dict) -> artifacts.Split:
    return artifacts.Split(rows, np.array([photo.label for photo in photos], np.int64), names_of(photos), meta)


def names_of(photos: Sequence[data.Photo]) -> np.ndarray:
    return np.array([photo.name for photo in photos], np.str_)


def fingerprint(*values) -> str:
    """SHA-256 of JSON-like values: two runs with the same one worked from the same lists and settings."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
