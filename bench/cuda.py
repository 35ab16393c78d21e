"""Compare the speed on a GPU with PyTorch's: both sides run in turn, results go to host memory, medians are printed.

    python -m bench.cuda --torch PYTHON [--photos FOLDER] [--features TASK.npz] [--only images,files] [--rounds 7]

PYTHON is the interpreter of an environment with PyTorch for CUDA. OpenAI's code runs there in float32 (without TF32)
and in "half", the precision that it has on CUDA by default. FOLDER holds photographs, for the row "files"; TASK.npz is
a few-shot task as bench/accuracy.py reads it. The weights are random ones of ViT-B/32, written here in the release
format. A row that fails is reported in one line. With `--device cpu` and small sizes all rows run without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.worker import PROJECT, SETUP, Worker, in_turn
from jclip.paths import expand

CLASSES = PROJECT / "Dataset" / "classes_b.txt"
# features, resolution, layers, width, patch of the image tower
SIZES = {"ViT-B/32": (512, 224, 12, 768, 32), "ViT-L/14": (768, 224, 24, 1024, 14)}
DECODERS = (2, 4, 8, 16)  # processes that read photographs
SYNTHETIC = (1_000, 16, 2_000, 512)  # classes, shots a class, validation rows, width
EXTRA = ("large", "resnet", "memory")  # rows for --only


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--torch", type=expand, required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}"
    )
    p.add_argument("--photos", type=expand, metavar="FOLDER")
    p.add_argument("--features", type=expand, metavar="TASK.npz")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="LIST",
        help=f"some of {','.join(ROWS)} (default: all but {', '.join(EXTRA)} for which there is the data)",
    )
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--batch", type=int, default=256, metavar="N", help="images at a time (default: 256)")
    p.add_argument("--files", type=int, default=4000, metavar="N", help="photographs on disk (default: 4000)")
    p.add_argument("--times", type=int, default=15, metavar="N", help="batches that are timed together (default: 15)")
    p.add_argument("--limit", type=int, default=150, metavar="SECONDS", help="for one row (default: 150)")
    a = p.parse_args(argv)
    left_out = {*EXTRA, *(["files"] if not a.photos else []), *(["tip-f"] if not a.features else [])}
    chosen = a.only or [row for row in ROWS if row not in left_out]
    if unknown := set(chosen) - set(ROWS):
        p.error(f"no row {', '.join(sorted(unknown))}; expected some of {','.join(ROWS)}")
    signal.signal(signal.SIGALRM, _raise_timeout)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(a, Path(folder))
        failed = sum(not bench.run(row) for row in ["machine", *chosen])
        bench.end()
    print(f"{len(chosen) + 1 - failed} rows, {failed} failed")
    sys.exit(bool(failed))


class Bench:
    """The settings, a temporary folder, and the workers of both sides, which start when a row first needs them.

    After a row that fails, the next row starts new workers.
    """

    def __init__(self, settings: argparse.Namespace, folder: Path):
        self.settings, self.folder, self.device = settings, folder, settings.device
        self.precisions = ("half", "float32") if self.device == "cuda" else ("float32",)
        self.workers: dict[str, list[Worker]] = {}
        self.ceilings: dict[str, float] = {}

    def run(self, row: str) -> bool:
        """Print a row of the table, or the reason why it failed, and return whether it worked."""
        started = time.perf_counter()
        signal.alarm(self.settings.limit)
        try:
            {**ROWS, "machine": machine}[row](self)
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            print(f"ROW failed: {row}: {reason} (after {time.perf_counter() - started:.0f} s)", flush=True)
            self.end()
            return False
        finally:
            signal.alarm(0)
        print(f"  ({row}: {time.perf_counter() - started:.0f} s)", file=sys.stderr, flush=True)
        return True

    def sides(self, name: str = "ViT-B/32") -> list[Worker]:
        """Return the workers of this program and of PyTorch, with a model of that name."""
        model = self.folder / f"{name.replace('/', '-').replace('@', '-')}.pt"
        if name not in self.workers:
            ours, theirs = self.start(model)
            self.workers[name] = [ours, theirs]
            if not model.exists():
                theirs.ask("make_model", path=str(model), name=name)
        return self.workers[name]

    def start(self, model: Path) -> list[Worker]:
        return [
            Worker("this program", sys.executable, "ours", model),
            Worker("PyTorch", self.settings.torch, "reference", "torch", model),
        ]

    def end(self) -> None:
        for worker in [worker for sides in self.workers.values() for worker in sides]:
            stop(worker)
        self.workers.clear()

    def in_turn(self, workers: list[Worker], what: str, **arguments) -> list[float]:
        """Return the median seconds of each worker."""
        return list(in_turn(workers, self.settings.rounds, what, device=self.device, **arguments).values())

    def ceiling(self, precision: str) -> float:
        """Return the FLOP/s of a large matrix product in PyTorch, which uses cuBLAS: the upper bound for the towers."""
        if precision not in self.ceilings:
            _, flops = self.sides()[1].ask(
                "product", n=8192 if self.device == "cuda" else 512, device=self.device, precision=precision
            )
            self.ceilings[precision] = flops
            print_row(f"the ceiling: a matrix product of 8192³, {precision}", theirs=f"{flops / 1e12:.1f} TFLOP/s")
        return self.ceilings[precision]


def stop(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait()


def _raise_timeout(*_) -> None:
    raise TimeoutError("takes too long")


def print_row(what: str, ours: str = "", theirs: str = "", ratio: float | None = None, note: str = "") -> None:
    print(f"| {what} | {ours} | {theirs} | {f'{ratio:.2f} x' if ratio else ''} | {note} |", flush=True)


# ---- the rows ----


def machine(bench: Bench) -> None:
    """Print the card, the driver, the versions, the date and the head of the table."""
    card = smi("name,driver_version,memory.total,clocks.sm") if bench.device == "cuda" else "no GPU"
    versions = ", ".join(worker.ask("version")[1] for worker in bench.sides())
    print(f"{card}; {os.cpu_count()} cores; {versions}; {datetime.date.today()}", flush=True)
    print("| work | this program | PyTorch | ratio | note |")
    print("|---" * 5 + "|", flush=True)


def images(bench: Bench) -> None:
    """Time the image tower from pixels on the GPU, in each precision; other batch sizes for this program alone."""
    for precision in bench.precisions:
        tower(bench, "ViT-B/32", bench.settings.batch, precision)
        for n in (bench.settings.batch // 8, bench.settings.batch * 4) if precision == "half" else ():
            (seconds,) = bench.in_turn(
                bench.sides()[:1], "images", n=n, precision=precision, on_device=True, times=bench.settings.times
            )
            print_row(f"ViT-B/32 images, batch {n}, {precision}", f"{n * bench.settings.times / seconds:.0f}/s")


def large(bench: Bench) -> None:
    """Time the image tower of ViT-L/14."""
    for precision in bench.precisions:
        tower(bench, "ViT-L/14", bench.settings.batch // 4, precision)


def resnet(bench: Bench) -> None:
    """Time the image tower of RN50, which this program computes as matrix products, without cuDNN."""
    n, times = bench.settings.batch // 4, bench.settings.times
    for precision in bench.precisions:
        ours, theirs = bench.in_turn(
            bench.sides("RN50"), "images", n=n, precision=precision, on_device=True, times=times
        )
        rates = [f"{n * times / seconds:.0f}/s" for seconds in (ours, theirs)]
        print_row(f"RN50 images, batch {n}, {precision}", *rates, theirs / ours)


def tower(bench: Bench, name: str, n: int, precision: str) -> None:
    """Time an image tower on both sides, and print its share of the upper bound."""
    our_flops, their_flops = (flops(name, whole_last_block) * n for whole_last_block in (False, True))
    ceiling = bench.ceiling(precision)
    seconds = bench.in_turn(
        bench.sides(name), "images", n=n, precision=precision, on_device=True, times=bench.settings.times
    )
    ours, theirs = (s / bench.settings.times for s in seconds)
    print_row(
        f"{name} images, batch {n}, {precision}",
        f"{n / ours:.0f}/s",
        f"{n / theirs:.0f}/s",
        theirs / ours,
        f"{our_flops / ours / 1e12:.1f} TFLOP/s, {our_flops / ours / ceiling:.0%} of the ceiling; PyTorch "
        f"{their_flops / theirs / 1e12:.1f}, {their_flops / theirs / ceiling:.0%}",
    )


def flops(name: str, whole_last_block: bool) -> int:
    """Count the floating-point operations per image in matrix products and attention.

    Of the last block, count all tokens, or what the class token needs.
    """
    features, resolution, layers, width, patch = SIZES[name]
    tokens = (resolution // patch) ** 2 + 1
    # queries, keys, values and attention; all that follows takes 9 w² per token
    attention = tokens * 3 * width**2 + 2 * tokens**2 * width
    last = attention + (tokens if whole_last_block else 1) * 9 * width**2
    return 2 * (
        (tokens - 1) * 3 * patch**2 * width
        + (layers - 1) * (attention + tokens * 9 * width**2)
        + last
        + width * features
    )


def texts(bench: Bench) -> None:
    """Time the 403 class prompts, tokenizing included."""
    from fewshot import prompts
    from fewshot.data import read_classes

    sentences = [of_class[0] for of_class in prompts.read(read_classes(CLASSES)).sentences]
    if bench.device == "cpu":
        sentences = sentences[:8]
    ours, theirs = bench.sides()
    for precision in bench.precisions:
        (own,) = bench.in_turn([ours], "texts", texts=sentences, precision=precision)
        for batch in (64, len(sentences)):
            (same_batch, other) = bench.in_turn(
                [ours, theirs], "texts", texts=sentences, precision=precision, batch=batch
            )
            print_row(
                f"{len(sentences)} class prompts, {precision}, {batch} at a time",
                f"{len(sentences) / same_batch:.0f}/s",
                f"{len(sentences) / other:.0f}/s",
                other / same_batch,
                f"{len(sentences) / own:.0f}/s at this program's own batch, {other / own:.2f} x",
            )


def files(bench: Bench) -> None:
    """Time JPEG files to features, the tower alone and the readers alone; the start of the readers does not count."""
    if not bench.settings.photos:
        raise ValueError("needs --photos FOLDER")
    n, ours, times = bench.settings.files, bench.sides()[0], bench.settings.times
    folder = str(write_photos(bench.settings.photos, n, bench.folder / "files"))
    readers = {
        workers: ours.ask("decode", folder=folder, n=n, workers=workers, batch=bench.settings.batch)[1]
        for workers in DECODERS
        if workers <= 2 * (os.cpu_count() or 1)
    }
    print_row(
        f"reading {n} JPEGs of 500 x 375, no model",
        ", ".join(f"{workers} processes {rate:.0f}/s" for workers, rate in readers.items()),
    )
    for precision in bench.precisions:
        arguments = dict(n=bench.settings.batch, precision=precision, on_device=False, times=times)
        (tower,) = bench.in_turn([ours], "images", **arguments)
        rate = times * bench.settings.batch / tower
        ours.ask("files", folder=folder, n=n // 4, device=bench.device, precision=precision)  # warms up
        seconds = {
            part: np.median(
                [
                    ours.ask("files", folder=folder, n=part, device=bench.device, precision=precision)[0]
                    for _ in range(3)
                ]
            )
            for part in (n // 4, n)
        }
        steady = (n - n // 4) / max(1e-9, seconds[n] - seconds[n // 4])
        slower = min(rate, max(readers.values()))
        print_row(
            f"{n} JPEGs to features, {precision}",
            f"{steady:.0f}/s",
            note=f"{n / seconds[n]:.0f}/s with the start of the readers; tower alone {rate:.0f}/s, "
            f"readers alone {max(readers.values()):.0f}/s; {steady / slower:.0%} of the slower",
        )


def write_photos(sources: Path, n: int, folder: Path) -> Path:
    """Write n JPEGs of 500 x 375 and quality 90, up to 60 different ones, into a new folder, and return it."""
    from bench.extraction import write_jpegs
    from fewshot.data import photographs

    different = photographs(sources)[:60]
    folder.mkdir()
    pictures = folder.with_name("pictures")
    pictures.mkdir()
    contents = [file.read_bytes() for file in write_jpegs(different, len(different), pictures)]
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(contents[i % len(contents)])
    return folder


def tip_f(bench: Bench) -> None:
    """Time 20 epochs of Tip-Adapter-F on the features of --features."""
    if not bench.settings.features:
        raise ValueError("needs --features TASK.npz")
    with np.load(bench.settings.features) as file:
        features = {name: unit(file[name].astype(np.float32)) for name in ("text", "train_features", "val_features")}
        labels = {name: file[f"{name}_labels"].astype(np.int64) for name in ("train", "val")}
    folder = write_task(
        bench.folder / "task",
        features["text"],
        features["train_features"],
        labels["train"],
        features["val_features"],
        labels["val"],
    )
    fine_tuning(bench, bench.settings.features.stem, folder)


def synthetic(bench: Bench) -> None:
    """Time 20 epochs of Tip-Adapter-F on features drawn around random unit vectors, one for each class."""
    classes, shots, rows, width = SYNTHETIC if bench.device == "cuda" else (20, 4, 100, 64)
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((classes, width), np.float32))
    train, val = np.arange(classes).repeat(shots), np.arange(rows) % classes
    text, shot_rows, val_rows = (
        unit(centres[labels] + 0.08 * rng.standard_normal((len(labels), width), np.float32))
        for labels in (np.arange(classes), train, val)
    )
    fine_tuning(
        bench,
        f"{classes} classes x {shots} shots",
        write_task(bench.folder / "synthetic", text, shot_rows, train, val_rows, val),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """Divide each row by its L2 norm."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def write_task(folder: Path, text, rows, labels, val, val_labels) -> Path:
    """Write text.npz, support.npz with one view per shot, and val.npz; return their folder."""
    from fewshot import artifacts

    def names(n: int) -> np.ndarray:
        return np.array([str(i) for i in range(n)])

    folder.mkdir(exist_ok=True)
    artifacts.write_together(
        {
            folder / "text.npz": artifacts.Text(text, names(len(text)), 100.0),
            folder / "support.npz": artifacts.Support(rows[:, None], labels, names(len(labels))),
            folder / "val.npz": artifacts.Split(val, val_labels, names(len(val_labels))),
        }
    )
    return folder


def fine_tuning(bench: Bench, task: str, folder: Path) -> None:
    """Time the epochs alone on both sides, then the whole method and its search in this program."""
    ours, theirs = bench.sides()
    own, other = [], []
    for _ in range(bench.settings.rounds + 1):
        own.append(ours.ask("fine_tuning", folder=str(folder), device=bench.device)[0])
        took, best = theirs.ask("tip_f", folder=str(folder), device=bench.device)
        other.append(took)
    own, other = np.median(own[1:]), np.median(other[1:])
    print_row(
        f"tip-f, {task}: 20 epochs, each validated",
        f"{own:.3f} s",
        f"{other:.3f} s",
        other / own,
        f"PyTorch's best top-1 {best['top1']:.4f}",
    )
    whole = [ours.ask("tip_f", folder=str(folder), device=bench.device) for _ in range(3)]
    search = ours.ask("search", folder=str(folder))[0]
    print_row(
        f"tip-f, {task}: the whole method",
        f"{np.median([took for took, _ in whole[1:]]):.2f} s",
        note=f"of which about {search:.2f} s the search, on the CPU; top-1 {whole[-1][1]['top1']:.4f}",
    )


def memory(bench: Bench) -> None:
    """Print the GPU memory that each side adds after batches of rising size; neither side returns memory in between."""
    bench.sides()  # writes the model
    bench.end()
    for precision in bench.precisions:
        for side in (0, 1):
            before = memory_in_use()
            workers = bench.start(bench.folder / "ViT-B-32.pt")
            stop(workers[1 - side])
            worker = workers[side]
            try:
                measured = []
                for n in (32, 256, 1024):
                    worker.ask("images", n=n, device=bench.device, precision=precision)
                    measured.append(f"{n}: {memory_in_use() - before} MB")
            finally:
                stop(worker)
            print_row(f"GPU memory by batch, {precision}, {worker.name}", note=", ".join(measured))


def memory_in_use() -> int:
    """Return the MB of GPU memory that all processes use, once it is stable: an ended process frees it with a delay."""
    readings = [-1, int(smi("memory.used").split()[0])]
    while readings[-1] != readings[-2]:
        time.sleep(1)
        readings.append(int(smi("memory.used").split()[0]))
    return readings[-1]


def smi(what: str) -> str:
    """Ask nvidia-smi for properties of the first GPU."""
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()[0]


ROWS = {
    "images": images,
    "tip-f": tip_f,
    "texts": texts,
    "files": files,
    "synthetic": synthetic,
    "large": large,
    "resnet": resnet,
    "memory": memory,
}


if __name__ == "__main__":
    main()
