"""Speed on a GPU against PyTorch, both in one run and by turns: medians, the result in the host's memory each time.

    python -m bench.cuda --torch PYTHON [--photos FOLDER] [--features TASK.npz] [--only images,files] [--rounds 7]

PYTHON is the interpreter of an environment with PyTorch for CUDA; OpenAI's code runs there, in float32 (without TF32)
and, as "half", as it loads on CUDA by itself. FOLDER holds photographs, for the row of files; TASK.npz is a few-shot
task as bench/accuracy.py reads it. Weights are random, of ViT-B/32 in the release format, made here. A row that fails
says so in one line. With `--device cpu` and small sizes all of it runs without a GPU, for a try.
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

CLASSES = PROJECT / "Dataset" / "classes_b.txt"
# features, resolution, layers, width, patch of the image tower
SIZES = {"ViT-B/32": (512, 224, 12, 768, 32), "ViT-L/14": (768, 224, 24, 1024, 14)}
DECODERS = (2, 4, 8, 16)  # processes that read photographs
SYNTHETIC = (1_000, 16, 2_000, 512)  # classes, shots a class, validation rows, width
EXTRA = ("large", "memory")  # rows for --only


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--torch", required=True, metavar="PYTHON", help=f"of an environment made with: {SETUP}")
    p.add_argument("--photos", type=Path, metavar="FOLDER")
    p.add_argument("--features", type=Path, metavar="TASK.npz")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="LIST",
        help=f"some of {','.join(ROWS)} (default: all but {' and '.join(EXTRA)} for which there is the data)",
    )
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--batch", type=int, default=256, metavar="N", help="images at a time (default: 256)")
    p.add_argument("--files", type=int, default=4000, metavar="N", help="photographs on disk (default: 4000)")
    p.add_argument("--times", type=int, default=15, metavar="N", help="batches that are timed together (default: 15)")
    p.add_argument("--limit", type=int, default=150, metavar="SECONDS", help="for one row (default: 150)")
    a = p.parse_args()
    left_out = {*EXTRA, *(["files"] if not a.photos else []), *(["tip-f"] if not a.features else [])}
    chosen = a.only or [row for row in ROWS if row not in left_out]
    if unknown := set(chosen) - set(ROWS):
        p.error(f"no row {', '.join(sorted(unknown))}; expected some of {','.join(ROWS)}")
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(a, Path(folder))
        failed = sum(not bench.run(row) for row in ["machine", *chosen])
        bench.end()
    print(f"{len(chosen) + 1 - failed} rows, {failed} failed")
    sys.exit(bool(failed))


class Bench:
    """The settings, a temporary folder, and both sides, which start when they are needed and again where a row has
    ended them."""

    def __init__(self, settings: argparse.Namespace, folder: Path):
        self.settings, self.folder, self.device = settings, folder, settings.device
        self.precisions = ("half", "float32") if self.device == "cuda" else ("float32",)
        self.workers: dict[str, list[Worker]] = {}
        self.ceilings: dict[str, float] = {}

    def run(self, row: str) -> bool:
        """Print a row of the table, or in one line why it failed."""
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
        """This program, then PyTorch, with a model of that name."""
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

    def turns(self, workers: list[Worker], what: str, **arguments) -> list[float]:
        """Median seconds of each worker."""
        return list(in_turn(workers, self.settings.rounds, what, device=self.device, **arguments).values())

    def ceiling(self, precision: str) -> float:
        """FLOP/s of a large matrix product through cuBLAS, as PyTorch calls it."""
        if precision not in self.ceilings:
            _, flops = self.sides()[1].ask(
                "product", n=8192 if self.device == "cuda" else 512, device=self.device, precision=precision
            )
            self.ceilings[precision] = flops
            line(f"the ceiling: a matrix product of 8192³, {precision}", theirs=f"{flops / 1e12:.1f} TFLOP/s")
        return self.ceilings[precision]


def stop(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait()


def _too_long(*_) -> None:
    raise TimeoutError("takes too long")


def line(what: str, ours: str = "", theirs: str = "", ratio: float | None = None, note: str = "") -> None:
    print(f"| {what} | {ours} | {theirs} | {f'{ratio:.2f} x' if ratio else ''} | {note} |", flush=True)


# ---- the rows ----


def machine(bench: Bench) -> None:
    """The card, the driver, the versions and the date, and the table's head."""
    card = smi("name,driver_version,memory.total,clocks.sm") if bench.device == "cuda" else "no GPU"
    versions = ", ".join(worker.ask("version")[1] for worker in bench.sides())
    print(f"{card}; {os.cpu_count()} cores; {versions}; {datetime.date.today()}", flush=True)
    print("| work | this program | PyTorch | ratio | note |")
    print("|---" * 5 + "|", flush=True)


def images(bench: Bench) -> None:
    """The image tower, float32 and half, from pixels on the GPU; other batches for this program alone."""
    for precision in bench.precisions:
        tower(bench, "ViT-B/32", bench.settings.batch, precision)
        for n in (bench.settings.batch // 8, bench.settings.batch * 4) if precision == "half" else ():
            (seconds,) = bench.turns(
                bench.sides()[:1], "images", n=n, precision=precision, on_device=True, times=bench.settings.times
            )
            line(f"ViT-B/32 images, batch {n}, {precision}", f"{n * bench.settings.times / seconds:.0f}/s")


def large(bench: Bench) -> None:
    """The image tower of ViT-L/14."""
    for precision in bench.precisions:
        tower(bench, "ViT-L/14", bench.settings.batch // 4, precision)


def tower(bench: Bench, name: str, n: int, precision: str) -> None:
    own, whole = (flops(name, all_of_last) * n for all_of_last in (False, True))
    ceiling = bench.ceiling(precision)
    seconds = bench.turns(
        bench.sides(name), "images", n=n, precision=precision, on_device=True, times=bench.settings.times
    )
    ours, theirs = (s / bench.settings.times for s in seconds)
    line(
        f"{name} images, batch {n}, {precision}",
        f"{n / ours:.0f}/s",
        f"{n / theirs:.0f}/s",
        theirs / ours,
        f"{own / ours / 1e12:.1f} TFLOP/s, {own / ours / ceiling:.0%} of the ceiling; PyTorch "
        f"{whole / theirs / 1e12:.1f}, {whole / theirs / ceiling:.0%}",
    )


def flops(name: str, all_of_last: bool) -> int:
    """Floating-point operations for an image: products and attention; of the last block everything, or what the class
    token needs."""
    features, resolution, layers, width, patch = SIZES[name]
    tokens = (resolution // patch) ** 2 + 1
    mixing = (
        tokens * 3 * width**2 + 2 * tokens**2 * width
    )  # queries, keys and values, attention; what follows it is 9 w² a token
    last = mixing + (tokens if all_of_last else 1) * 9 * width**2
    return 2 * (
        (tokens - 1) * 3 * patch**2 * width + (layers - 1) * (mixing + tokens * 9 * width**2) + last + width * features
    )


def texts(bench: Bench) -> None:
    """403 class prompts, tokenizing included."""
    from fewshot import prompts
    from fewshot.data import read_classes

    sentences = [of_class[0] for of_class in prompts.read(read_classes(CLASSES)).sentences]
    if bench.device == "cpu":
        sentences = sentences[:8]
    ours, theirs = bench.sides()
    for precision in bench.precisions:
        (own,) = bench.turns([ours], "texts", texts=sentences, precision=precision)
        for batch in (64, len(sentences)):
            (own_too, other) = bench.turns([ours, theirs], "texts", texts=sentences, precision=precision, batch=batch)
            line(
                f"{len(sentences)} class prompts, {precision}, {batch} at a time",
                f"{len(sentences) / own_too:.0f}/s",
                f"{len(sentences) / other:.0f}/s",
                other / own_too,
                f"{len(sentences) / own:.0f}/s at this program's own batch, {other / own:.2f} x",
            )


def files(bench: Bench) -> None:
    """JPEG files to features, beside the tower alone and the readers alone. Rates do not count the start of the
    readers."""
    if not bench.settings.photos:
        raise ValueError("needs --photos FOLDER")
    n, ours, times = bench.settings.files, bench.sides()[0], bench.settings.times
    folder = str(written(bench.settings.photos, n, bench.folder / "files"))
    readers = {
        workers: ours.ask("decode", folder=folder, n=n, workers=workers, batch=bench.settings.batch)[1]
        for workers in DECODERS
        if workers <= 2 * (os.cpu_count() or 1)
    }
    line(
        f"reading {n} JPEGs of 500 x 375, no model",
        ", ".join(f"{workers} processes {rate:.0f}/s" for workers, rate in readers.items()),
    )
    for precision in bench.precisions:
        arguments = dict(n=bench.settings.batch, precision=precision, on_device=False, times=times)
        (tower,) = bench.turns([ours], "images", **arguments)
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
        line(
            f"{n} JPEGs to features, {precision}",
            f"{steady:.0f}/s",
            note=f"{n / seconds[n]:.0f}/s with the start of the readers; tower alone {rate:.0f}/s, "
            f"readers alone {max(readers.values()):.0f}/s; {steady / slower:.0%} of the slower",
        )


def written(sources: Path, n: int, folder: Path) -> Path:
    """n JPEGs of 500 x 375 and quality 90, each a file of its own; up to 60 are different pictures."""
    from extraction import written

    from fewshot.data import photographs

    found = photographs(sources)[:60]
    folder.mkdir()
    pictures = folder.with_name("pictures")
    pictures.mkdir()
    contents = [file.read_bytes() for file in written(found, len(found), pictures)]
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(contents[i % len(contents)])
    return folder


def tip_f(bench: Bench) -> None:
    """20 epochs of Tip-Adapter-F on the features of --features."""
    if not bench.settings.features:
        raise ValueError("needs --features TASK.npz")
    with np.load(bench.settings.features) as file:
        part = {name: unit(file[name].astype(np.float32)) for name in ("text", "train_features", "val_features")}
        labels = {name: file[f"{name}_labels"].astype(np.int64) for name in ("train", "val")}
    folder = write_task(
        bench.folder / "task",
        part["text"],
        part["train_features"],
        labels["train"],
        part["val_features"],
        labels["val"],
    )
    fine_tuning(bench, bench.settings.features.stem, folder)


def synthetic(bench: Bench) -> None:
    """The same on classes that are points on the unit sphere, with rows around them."""
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
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def write_task(folder: Path, text, rows, labels, val, val_labels) -> Path:
    """text.npz, support.npz with one view a shot, and val.npz."""
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
    """Epochs alone, on both sides; then the whole of the method here, and its search."""
    ours, theirs = bench.sides()
    own, other = [], []
    for _ in range(bench.settings.rounds + 1):
        own.append(ours.ask("fine_tuning", folder=str(folder), device=bench.device)[0])
        took, found = theirs.ask("tip_f", folder=str(folder), device=bench.device)
        other.append(took)
    own, other = np.median(own[1:]), np.median(other[1:])
    line(
        f"tip-f, {task}: 20 epochs, each validated",
        f"{own:.3f} s",
        f"{other:.3f} s",
        other / own,
        f"PyTorch's best top-1 {found['top1']:.4f}",
    )
    whole = [ours.ask("tip_f", folder=str(folder), device=bench.device) for _ in range(3)]
    search = ours.ask("search", folder=str(folder))[0]
    line(
        f"tip-f, {task}: the whole method",
        f"{np.median([took for took, _ in whole[1:]]):.2f} s",
        note=f"of which about {search:.2f} s the search, on the CPU; top-1 {whole[-1][1]['top1']:.4f}",
    )


def memory(bench: Bench) -> None:
    """The GPU's memory that is in use after batches of rising size, above what was before the process; both keep what
    they had."""
    bench.sides()  # writes the model
    bench.end()
    for precision in bench.precisions:
        for side in (0, 1):
            before = used()
            workers = bench.start(bench.folder / "ViT-B-32.pt")
            stop(workers[1 - side])
            worker = workers[side]
            try:
                found = []
                for n in (32, 256, 1024):
                    worker.ask("images", n=n, device=bench.device, precision=precision)
                    found.append(f"{n}: {used() - before} MB")
            finally:
                stop(worker)
            line(f"GPU memory by batch, {precision}, {worker.name}", note=", ".join(found))


def used() -> int:
    """MB of the GPU's memory in use, by all processes, once it no longer changes: it is freed some time after a process
    has ended."""
    found = [-1, int(smi("memory.used").split()[0])]
    while found[-1] != found[-2]:
        time.sleep(1)
        found.append(int(smi("memory.used").split()[0]))
    return found[-1]


def smi(what: str) -> str:
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
    "memory": memory,
}


if __name__ == "__main__":
    main()
