"""The five likeliest classes of photographs.

Bare, it classifies output/test.npz with output/adapter.npz and writes result.txt (one line a photograph: its name and
five labels, best first) and result.zip. Given photographs or folders, it prints each one's classes and probabilities,
from the trained adapter or, with --classes, zero-shot: no training and no data set at all. --sheet draws both ways.
--transductive lets the photographs of the test set help to classify each other. --report writes a page about the test
set: how good the answers are and why, what looks wrong in the data, what to label next.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewshot import artifacts, class_names, cli, data
from fewshot.errors import TaskError, preview
from fewshot.prompts import class_groups
from fewshot.rows import softmax
from fewshot.task_features import read_labelled
from jclip import bounded
from jclip.paths import expand
from report import metrics, page, result, sheet
from tip_adapter_utils import predict_logits


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--output", "--weights", "--device", "--precision", "--data", "--split")
    p.add_argument(
        "photos",
        nargs="*",
        type=expand,
        metavar="PHOTO_OR_FOLDER",
        help="photographs or folders to classify and print, encoded with --weights",
    )
    p.add_argument(
        "--classes",
        type=class_list,
        metavar="LIST",
        help='zero-shot among these, for example "cat, dog, car", or a file with one name per line; needs photographs',
    )
    p.add_argument(
        "--result",
        type=expand,
        default=Path("result.txt"),
        metavar="FILE",
        help="what to write; a .zip of it stands beside it (default: result.txt)",
    )
    p.add_argument(
        "--transductive",
        nargs="?",
        const=True,
        choices=("balanced",),
        metavar="balanced",
        help="let the test photographs help to classify each other: an answer then depends on the others, too; with "
        "`balanced`, all classes are taken to be about equally frequent among them",
    )
    p.add_argument(
        "--sheet",
        type=sheet_path,
        metavar="FILE",
        help=f"also draw a contact sheet of up to {sheet.MAX_PHOTOS} photographs; of the test set, it needs --data",
    )
    p.add_argument(
        "--report",
        type=report_path,
        metavar="FILE.html",
        help="also write a page for the browser, the same as FILE.json, and label_next.csv; with pictures from --data",
    )
    p.add_argument(
        "--report-photos",
        type=cli.whole_number(0),
        default=page.PHOTOS,
        metavar="N",
        help=f"test photographs on the page at most; 0: no pictures (default: {page.PHOTOS})",
    )
    p.add_argument(
        "--lang",
        choices=page.LANGUAGES,
        default="auto",
        help="language of the page; auto is that of the browser (default: auto)",
    )
    p.add_argument(
        "--topk", type=cli.whole_number(1), default=5, metavar="K", help="classes per photograph (default: 5)"
    )
    a = p.parse_args(argv)
    if a.classes is not None and not a.photos:
        p.error("--classes needs photographs or folders to classify")
    if a.transductive and a.photos:
        p.error("--transductive is about the test set; leave out the photographs")
    if a.report and a.photos:
        p.error("--report is about the test set; leave out the photographs")
    if a.report and a.report.with_suffix(".json").name == "metrics.json":
        p.error("--report also writes FILE.json, which would replace metrics.json; choose another name")
    if a.result.suffix.lower() == ".zip":
        p.error("--result names the text file; the .zip of it is written beside it")
    return a


def class_list(text: str) -> list[str] | Path:
    """Parse "cat, dog, car" into a list of names, or the path of a file that exists, as an argparse type."""
    path = expand(text)
    if os.path.exists(path) and not os.path.isdir(path):  # Path.exists fails for a long list
        return path
    try:
        return class_names.parse(text)
    except TaskError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def sheet_path(text: str) -> Path:
    """Parse a path with a suffix of sheet.FORMATS, as an argparse type."""
    if Path(text).suffix.lower() not in sheet.FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in {', '.join(sheet.FORMATS)}")
    return expand(text)


def report_path(text: str) -> Path:
    """Parse the path of a page, as an argparse type."""
    if Path(text).suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in .html")
    path = expand(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; expected the name of a file")
    return path


@cli.command
def main(argv=None):
    a = parse(argv)
    if a.photos:
        print_photos(a)
        return
    adapter = artifacts.read(a.output / "adapter.npz", artifacts.Adapter)
    test = artifacts.read(a.output / "test.npz", artifacts.Split)
    artifacts.check_together(adapter, test)
    logits, used = predict_logits(adapter, test.features), None
    if a.transductive:
        logits, used = predict_together(a.output, adapter, test, a.transductive == "balanced")
    write_result(a.result, adapter, test, logits, a.topk)
    if (test.labels >= 0).any() or used or "views" in test.meta or metrics.has_test(a.output):
        record(a.output, adapter, test, logits, used)
    if a.sheet:  # last, so that an error here loses nothing else
        rows = sheet_rows(test)
        photos = find_photos(a, adapter, [test.names[i] for i in rows])
        sheet.write(a.sheet, photos, softmax(logits[rows]), adapter, test.labels[rows], a.topk)
        print(f"{a.sheet}: {len(photos)} photographs")
    if a.report:
        write_report(a, adapter, test, logits, used)


def predict_together(
    output: Path, adapter: artifacts.Adapter, test: artifacts.Split, balanced: bool
) -> tuple[np.ndarray, dict]:
    """Return the logits of test rows that help to classify each other, and what was used; print it."""
    from methods.transduction import UNEQUAL, transduce

    used = transduce(adapter, test, *read_labelled(output, adapter, test), balanced)
    sizes = used.sizes
    spread = (
        f"confident answers are spread like those of {sizes.effective_classes:.0f} equally frequent classes of "
        f"{len(adapter.names)}; class sizes vary {sizes.ratio:.1f} times as much as errors explain"
    )
    print(f"transductive: strength {used.strength:g}, sizes to the power {sizes.rho:.2f}; {spread}")
    if balanced and sizes.ratio >= UNEQUAL:
        print(f"warning: the classes do not look balanced ({spread}); leave out `balanced` in doubt", file=sys.stderr)
    return used.logits, {"balanced": balanced, "strength": used.strength, **sizes._asdict()}


def write_report(
    a: argparse.Namespace,
    adapter: artifacts.Adapter,
    test: artifacts.Split,
    logits: np.ndarray,
    transductive: dict | None,
) -> None:
    """Write the report, and print what it is."""
    from report import data, publish  # here, because they import the methods, without which predict.py starts sooner

    answers = data.collect(a.output, adapter, test, logits, transductive)
    written = publish.write(a.report, answers, a.data, a.split, a.report_photos, a.lang)
    print(
        f"{a.report}: {written.shown} test photographs, {written.pictures} pictures; the numbers in {written.json}, "
        f"what to label next in {written.csv}"
    )


def write_result(path: Path, adapter: artifacts.Adapter, test: artifacts.Split, logits: np.ndarray, k: int) -> None:
    """Write result.txt and its .zip, and print what they hold."""
    unreadable = test.meta.get("unreadable", {})
    lines = result.lines(test.names, unreadable, logits, k)
    result.write(path, lines)
    print(
        f"{path}: {len(lines)} photographs, {min(k, len(adapter.names))} classes each, by {adapter.method}; the same "
        f"in {result.zip_path(path)}"
    )
    if unreadable:
        causes = [bounded.one_line(f"{name}: {cause}") for name, cause in unreadable.items()]
        head = f"{len(causes)} of them could not be read and got the classes that are likeliest over all others:"
        print(head, *preview(causes), sep="\n  ")


def record(
    output: Path, adapter: artifacts.Adapter, test: artifacts.Split, logits: np.ndarray, transductive: dict | None
) -> None:
    """Print the scores of the labelled test photographs, and add them and what was used to metrics.json."""
    scores = None
    if (test.labels >= 0).any():
        scores = metrics.score(logits, test.labels, adapter.names, class_groups(adapter))
        print(f"test: top-1 {scores['top1']:.1%}, top-5 {scores['top5']:.1%} of {scores['n']} labelled photographs")
    with cli.locked(output):
        metrics.record_test(output, scores, transductive, test.meta.get("views"))


def sheet_rows(test: artifacts.Split) -> list[int]:
    """Return the indices of the test photographs for the sheet, evenly spaced in natural order of the names."""
    order = sorted(range(len(test.names)), key=lambda i: data.natural_key(test.names[i]))
    return [order[i] for i in sheet.evenly_spaced(len(order))]


def find_photos(a: argparse.Namespace, adapter: artifacts.Adapter, names: Sequence[str]) -> list[Path]:
    """Return the paths of the test photographs with these names."""
    paths = {photo.name: photo.path for photo in data.read_test(a.data, adapter.names.tolist(), a.split)}
    missing = [name for name in names if name not in paths]
    if missing:
        raise TaskError(
            f"{a.output / 'test.npz'} names {missing[0]}, which {a.data} does not hold; name the data it was made from "
            "with --data"
        )
    return [paths[name] for name in names]


def print_photos(a: argparse.Namespace) -> None:
    """Print the likeliest classes and their probabilities for the photographs on the command line."""
    from fewshot import classifier, heap  # slow imports that --help and test.npz do not need
    from fewshot.encoder import balanced_batch_size
    from jclip.features import IMAGE_BATCH

    if isinstance(a.classes, Path):
        file, a.classes = a.classes, class_names.read(a.classes)
        print(f"{file}: {len(a.classes)} classes, from {a.classes[0]!r} to {a.classes[-1]!r}", file=sys.stderr)
    paths = [path for given in a.photos for path in data.photographs(given)]
    heap.keep_freed_memory()
    # the CPU's size also on CUDA, since there are few photographs
    batch_size = balanced_batch_size(len(paths), IMAGE_BATCH["cpu"])
    options = {"device": a.device, "batch_size": batch_size, "precision": a.precision}
    if a.classes:
        encoder, adapter = classifier.load_zero_shot(a.classes, a.weights, **options)
    else:
        encoder, adapter = classifier.load_trained(a.output / "adapter.npz", a.weights, **options)
    rows, failures = encoder.encode_photos(paths)
    readable = [i for i in range(len(paths)) if i not in failures]
    photos, probabilities = [paths[i] for i in readable], softmax(predict_logits(adapter, rows[readable]))
    for photo, row, best in zip(photos, probabilities, metrics.top_classes(probabilities, a.topk)):
        print(bounded.one_line(str(photo)))
        for label in best:
            print(f"  {row[label]:6.1%}  {adapter.names[label]}")
    if a.sheet and photos:
        shown = photos[: sheet.MAX_PHOTOS]
        sheet.write(a.sheet, shown, probabilities[: len(shown)], adapter, [data.UNKNOWN] * len(shown), a.topk)
        print(f"{a.sheet}: {len(shown)} photographs")
    if failures:
        raise_failures(paths, failures)


def raise_failures(paths: Sequence[Path], failures: dict[int, str]) -> None:
    """Raise TaskError for the first unreadable photograph, after printing a line for each of the others."""
    first, *others = (f"{paths[i]}: cannot be read as a photograph ({cause})" for i, cause in failures.items())
    for line in others:
        print(bounded.one_line(line), file=sys.stderr)
    raise TaskError(f"{first}; {len(failures)} of {len(paths)} left out")


if __name__ == "__main__":
    sys.exit(main())
