"""Photographs and prompts -> features: output/text.npz, support.npz, val.npz and test.npz.

Reads the contest's lists (classes_b.txt, train.txt, TestSetB) or plain folders (train/CLASS/*, test/* or
test/CLASS/*). Of each class's training photographs a few become the shots, with augmented views; the rest is the
validation set, on which train_adapter.py makes its choices. Stopped and started again, it goes on where it was; what is
unchanged since an earlier run is not encoded again.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np

import augment
from fewshot import cli, data, prompts, support
from fewshot.encoder import Encoder
from fewshot.extraction import Sampling, extract
from jclip.features import IMAGE_BATCH
from jclip.paths import expand


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--data", "--weights", "--output", "--split", "--device", "--precision", "--seed")
    p.add_argument(
        "--prompts",
        type=expand,
        default=prompts.FOLDER,
        metavar="DIR",
        help="folder of templates.json, names.json and GROUP_prompt.json (default: the program's own)",
    )
    add_sampling(p)
    batch_size = "photographs encoded at a time (default: {cpu}, on CUDA {cuda})".format(**IMAGE_BATCH)
    p.add_argument("--batch-size", type=cli.whole_number(1), metavar="N", help=batch_size)
    p.add_argument(
        "--force", action="store_true", help="encode everything anew, also what is unchanged since an earlier run"
    )
    p.add_argument(
        "--test-views",
        type=augment.parse_test_views,
        default="plain",
        metavar="LIST",
        help=f"views of which a test photograph is the mean, from {', '.join(augment.TEST_VIEWS)}; crops are five "
        "(default: plain)",
    )
    strict = "stop at the first photograph that cannot be read (default: leave it out and say so)"
    p.add_argument("--strict", action="store_true", help=strict)
    add_cluster(p)
    a = p.parse_args(argv)
    if a.workers and not a.cluster:
        p.error("--workers needs --cluster")
    return a


def add_cluster(p: argparse.ArgumentParser) -> None:
    """Add the options for many machines."""
    p.add_argument(
        "--cluster",
        type=cluster_address,
        metavar="WHERE",
        help="encode with workers of Ray: local starts it on this machine, auto or HOST:PORT joins a cluster "
        "(docs/cluster.md; default: in this process)",
    )
    workers = "workers of the cluster (default: one for each GPU, or one for up to 8 CPUs)"
    p.add_argument("--workers", type=cli.whole_number(1), metavar="N", help=workers)


def cluster_address(text: str) -> str:
    """Return an address of a cluster as it was given; for argparse."""
    if text in ("local", "auto") or re.fullmatch(r"[^\s/]+:\d{1,5}", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r}; expected local, auto or HOST:PORT")


def add_sampling(p: argparse.ArgumentParser) -> None:
    """Add the options for the fields of Sampling, except the seed."""
    shots = "training photographs per class to learn from (default: 4)"
    p.add_argument("--shots", type=cli.whole_number(1), default=4, metavar="K", help=shots)
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
    max_train = "look at no more than N training photographs per class, drawn with --seed (default: all)"
    p.add_argument("--max-train", type=cli.whole_number(1), metavar="N", help=max_train)
    max_val = "keep no more than N validation photographs per class, drawn with --seed (default: all that are left)"
    p.add_argument("--max-val", type=cli.whole_number(0), metavar="N", help=max_val)


@cli.command
def main(argv=None):
    a = parse(argv)
    task = data.read_task(a.data, a.split)
    sentences = read_prompts(task.classes, a.prompts)
    sampling = Sampling(a.shots, a.select, a.views, a.max_train, a.max_val, a.seed)
    load = on_cluster(a.cluster, a.workers) if a.cluster else Encoder.load
    with cli.locked(a.output):
        encoder = load(a.weights, a.device, a.batch_size, a.output / "store", a.strict, a.precision)
        with closing(encoder):
            if a.force:
                encoder.store.clear()
            extraction = extract(task, sentences, encoder, sampling, a.output, a.test_views)
            encoder.store.tidy()
    shots, val = extraction.support, extraction.val
    print(
        f"{a.output}: {len(shots.names)} shots of {len(np.unique(shots.labels))} classes in {len(a.views)} views, "
        f"{len(val.names) if val else 0} validation photographs"
    )
    print(
        f"{a.output}: text of {len(task.classes)} classes and {sum(map(len, sentences.sentences))} sentences, "
        f"{len(task.test)} test photographs"
    )
    print(
        f"{a.output}: encoded {encoder.store.computed}, kept {encoder.store.reused} photographs, views and sentences. "
        "Next: python train_adapter.py"
    )


def on_cluster(address: str, workers: int | None) -> Callable[..., Encoder]:
    """Return what loads an encoder on a Ray cluster; raise TaskError if Ray is not installed."""
    from fewshot.cluster import ClusterEncoder  # imports Ray, which nothing else needs

    return partial(ClusterEncoder.load, cluster=address, workers=workers)


def read_prompts(class_names: Sequence[str], folder: Path) -> prompts.Prompts:
    """Return the sentences of each class, checked for length, and print notes on gaps in the prompt files."""
    read = prompts.read(class_names, folder)
    prompts.check_lengths(class_names, read, folder)
    if read.without_entry:
        print(
            f"{len(read.without_entry)} of {len(class_names)} classes have no sentences of their own in {folder} and "
            f"live from their group's templates (the first: {read.without_entry[0]})",
            file=sys.stderr,
        )
    if read.unmatched:
        print(
            f"{len(read.unmatched)} entries in {folder} match no class here (the first: {read.unmatched[0]})",
            file=sys.stderr,
        )
    return read


if __name__ == "__main__":
    sys.exit(main())
