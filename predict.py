"""The five likeliest classes of photographs.

Bare, it classifies output/test.npz with output/adapter.npz and writes result.txt (one line a photograph: its name and
five labels, best first) and result.zip. Given photographs or folders, it prints each one's classes and probabilities,
from the trained adapter or, with --classes, zero-shot: no training and no data set at all. --sheet draws both ways.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

import numpy as np

from fewshot import artifacts, cli, data, prompts
from fewshot.errors import TaskError
from fewshot.files import written_together, written_whole
from jclip import bounded
from report import metrics, sheet
from tip_adapter_utils import predict_logits

FIRST = 5  # so many unreadable photographs are said one by one
SHEET = 30  # photographs on a contact sheet
BATCH = 32  # photographs encoded at a time
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of a contact sheet


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--output", "--weights", "--device", "--precision", "--data", "--split")
    p.add_argument(
        "photos",
        nargs="*",
        type=Path,
        metavar="PHOTO_OR_FOLDER",
        help="photographs or folders to classify and print, encoded with --weights",
    )
    p.add_argument(
        "--classes",
        type=class_list,
        metavar="LIST",
        help='zero-shot among these, for example "cat, dog, car"; needs photographs',
    )
    p.add_argument(
        "--result",
        type=Path,
        default=Path("result.txt"),
        metavar="FILE",
        help="what to write; a .zip of it stands beside it (default: result.txt)",
    )
    p.add_argument(
        "--sheet",
        type=picture,
        metavar="FILE",
        help=f"also draw a contact sheet of up to {SHEET} photographs; of the test set, it needs --data",
    )
    p.add_argument("--topk", type=cli.at_least(1), default=5, metavar="K", help="classes per photograph (default: 5)")
    a = p.parse_args(argv)
    if a.classes is not None and not a.photos:
        p.error("--classes needs photographs or folders to classify")
    if a.result.suffix.lower() == ".zip":
        p.error("--result names the text file; the .zip of it is written beside it")
    return a


def class_list(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f'{text!r}: expected different names separated by commas, such as "cat, dog, car"'
        )
    return names


def picture(text: str) -> Path:
    if Path(text).suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: expected a name that ends in {', '.join(FORMATS)}")
    return Path(text)


@cli.script
def main(argv=None):
    a = parse(argv)
    if a.photos:
        print_photos(a)
    else:
        write_result(a)


def write_result(a) -> None:
    """test.npz and adapter.npz -> result.txt, result.zip and, where labels are known, figures."""
    adapter = artifacts.read(a.output / "adapter.npz", artifacts.Adapter)
    test = artifacts.read(a.output / "test.npz", artifacts.Split)
    artifacts.check_together(adapter, test)
    logits = predict_logits(adapter, test.features)
    ranked = metrics.top_classes(logits, a.topk)
    unreadable = test.meta.get("unreadable", {})
    guesses = [*zip(test.names, ranked), *zip(unreadable, np.tile(prior(logits, a.topk), (len(unreadable), 1)))]
    lines = [
        " ".join([name, *map(str, best)]) + "\n"
        for name, best in sorted(guesses, key=lambda guess: data.natural_key(guess[0]))
    ]
    write_text_and_zip(a.result, "".join(lines).encode("utf-8"))
    print(
        f"{a.result}: {len(lines)} photographs, {min(a.topk, len(adapter.names))} classes each, by {adapter.method}; "
        f"the same in {zip_beside(a.result)}"
    )
    if unreadable:
        print(
            f"{len(unreadable)} of them could not be read and got the classes that are likeliest over all others:",
            *[bounded.one_line(f"{name}: {cause}") for name, cause in list(unreadable.items())[:FIRST]],
            *["…"] * (len(unreadable) > FIRST),
            sep="\n  ",
        )
    if (test.labels >= 0).any():
        figures = metrics.score(logits, test.labels, adapter.names, prompts.groups_of(adapter))
        with cli.locked(a.output):
            record_test(a.output, figures)
        print(f"test: top-1 {figures['top1']:.1%}, top-5 {figures['top5']:.1%} of {figures['n']} labelled photographs")
    if a.sheet:  # last: should it fail, nothing else is lost
        draw_test_sheet(a, adapter, test, logits)


def prior(logits: np.ndarray, k: int) -> np.ndarray:
    """The k classes, best first, that are likeliest of a photograph nobody has seen: by the mean probabilities of all
    others."""
    return metrics.top_classes(metrics.softmax(logits).mean(axis=0, keepdims=True), k)[0]


def draw_test_sheet(a, adapter: artifacts.Adapter, test: artifacts.Split, logits: np.ndarray) -> None:
    """A contact sheet of test photographs, spread evenly over the whole set."""
    paths = {photo.name: photo.path for photo in data.read_test(a.data, adapter.names.tolist(), a.split)}
    order = sorted(range(len(test.names)), key=lambda i: data.natural_key(test.names[i]))
    rows = [order[i] for i in np.linspace(0, len(order) - 1, min(SHEET, len(order))).astype(int)]
    absent = [test.names[i] for i in rows if test.names[i] not in paths]
    if absent:
        raise TaskError(
            f"{a.output / 'test.npz'} names {absent[0]}, which {a.data} does not hold; name the data it was made from "
            f"with --data"
        )
    truths = [adapter.names[test.labels[i]] if test.labels[i] >= 0 else None for i in rows]
    draw_sheet(a, [paths[test.names[i]] for i in rows], metrics.softmax(logits[rows]), adapter, truths)


def draw_sheet(a, paths, probabilities: np.ndarray, adapter: artifacts.Adapter, truths) -> None:
    """Write a.sheet: each photograph with its a.topk classes, named in words."""
    words = dict(zip(adapter.names, spoken(adapter)))
    shown = [
        sheet.Shown(path, [(words[adapter.names[label]], float(row[label])) for label in best], truth and words[truth])
        for path, row, best, truth in zip(paths, probabilities, metrics.top_classes(probabilities, a.topk), truths)
    ]
    drawn = sheet.contact_sheet(shown)
    with written_whole(a.sheet) as file:
        drawn.save(file, FORMATS[a.sheet.suffix.lower()])
    print(f"{a.sheet}: {len(shown)} photographs")


def spoken(adapter: artifacts.Adapter) -> list[str]:
    """Class names as people say them: without their group, spaces for underscores."""
    return [prompts.split_group(name, [group])[1] for name, group in zip(adapter.names, prompts.groups_of(adapter))]


def write_text_and_zip(path: Path, content: bytes) -> None:
    with written_together([path, zip_beside(path)]) as (text, zipped):
        text.write(content)
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(
                zipfile.ZipInfo(path.name), content, zipfile.ZIP_DEFLATED
            )  # its fixed date keeps the bytes the same


def zip_beside(path: Path) -> Path:
    return path.with_suffix(".zip")


def record_test(folder: Path, figures: dict) -> None:
    """Put the test figures into metrics.json and metrics.csv beside what train_adapter.py wrote."""
    path = folder / "metrics.json"
    try:
        known = bounded.json_value(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(known, dict):
            raise ValueError(f"holds a {type(known).__name__}, expected an object")
    except ValueError as error:
        raise TaskError(f"{path}: {error}; run train_adapter.py again") from None
    metrics.write(folder, {**known, "test": figures})


def print_photos(a) -> None:
    """Print the classes and probabilities of the given photographs."""
    from fewshot.encoder import even

    photos = [data.Photo(Path(), str(path), data.UNKNOWN) for given in a.photos for path in data.photographs(given)]
    encoder, adapter = (zero_shot if a.classes else trained)(a, even(len(photos), BATCH))
    rows, unreadable = encoder.photos(photos, "photographs")
    well = [i for i in range(len(photos)) if i not in unreadable]
    paths, probabilities = [photos[i].path for i in well], metrics.softmax(predict_logits(adapter, rows[well]))
    for path, row, best in zip(paths, probabilities, metrics.top_classes(probabilities, a.topk)):
        print(bounded.one_line(str(path)))
        for label in best:
            print(f"  {row[label]:6.1%}  {adapter.names[label]}")
    if a.sheet and paths:
        draw_sheet(a, paths[:SHEET], probabilities[:SHEET], adapter, [None] * len(paths))
    if unreadable:
        said = [f"{photos[i].path}: cannot be read as a photograph ({cause})" for i, cause in unreadable.items()]
        print(*map(bounded.one_line, said[1:]), sep="\n", end="\n" * (len(said) > 1), file=sys.stderr)
        raise TaskError(f"{said[0]}; {len(said)} of {len(photos)} left out")


def trained(a, batch_size: int) -> tuple:
    """An Encoder and the trained adapter; raises TaskError where they are not of one model."""
    from fewshot.encoder import Encoder

    path = a.output / "adapter.npz"
    adapter = artifacts.read(path, artifacts.Adapter)
    encoder = Encoder.load(a.weights, a.device, batch_size, precision=a.precision)
    trained_on = adapter.meta.get("weights_sha256", encoder.weights_sha256)
    if trained_on != encoder.weights_sha256:
        raise TaskError(
            f"{path} was trained on features of other weights (SHA-256 {trained_on[:12]}…) than {a.weights} "
            f"({encoder.weights_sha256[:12]}…); name those with --weights or run extract_feature.py and "
            f"train_adapter.py again"
        )
    if adapter.text.shape[1] != encoder.width:
        raise TaskError(
            f"{path} is of features of width {adapter.text.shape[1]}, {a.weights} makes {encoder.width}; name the "
            f"right weights with --weights"
        )
    return encoder, adapter


def zero_shot(a, batch_size: int) -> tuple:
    """An Encoder, and an adapter without a cache for the classes of --classes."""
    from fewshot.encoder import Encoder, check_lengths

    worded = prompts.read(a.classes)
    check_lengths(a.classes, worded, prompts.FOLDER, "shorten the name in --classes")
    encoder = Encoder.load(a.weights, a.device, batch_size, precision=a.precision)
    none = np.zeros((0, encoder.width), np.float32), np.zeros((0, len(a.classes)), np.float32)
    return encoder, artifacts.Adapter(
        "zero-shot", np.array(a.classes), encoder.prompts(worded.sentences), encoder.scale, *none, 0.0, 0.0
    )


if __name__ == "__main__":
    sys.exit(main())
