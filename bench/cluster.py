"""What a cluster of Ray costs and what its driver can take in.

    python -m bench.cluster overhead WEIGHTS FOLDER [--photos 640] [--rounds 3]
    python -m bench.cluster driver [--rows 100000]

`overhead` compares, in turns and in processes of their own, one process without Ray, a worker with all processors, and
a worker for each processor, on 500 x 375 JPEGs made from the photographs below FOLDER. The time in which processes
start is left out and printed beside.

`driver` starts several nodes on this machine. First their workers have the demo's tiny CLIP; then workers that make up
their rows at once, so that the driver is what takes the time. Its seconds of processor time, which other processes do
not disturb, say how many rows a second it can take in where it has processors to itself.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from bench.extraction import BATCH, write_jpegs
from bench.worker import PROJECT
from fewshot.data import UNKNOWN, Photo, photographs
from fewshot.encoder import Encoder
from fewshot.store import Store
from jclip.features import Encoded, unit
from jclip.paths import expand

SIDES = {"one process": 0, "a worker with all processors": 1, "a worker for each processor": -1}
OBJECT_STORE = 256 * 2**20  # bytes, of a node
TINY = PROJECT / "demo/clip.npz"
N_FILES = 1000  # drawn for `driver`
ROW = 512  # width of ViT-B/32's rows


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = p.add_subparsers(dest="mode", required=True)
    for mode in ("overhead", "side"):
        q = modes.add_parser(mode)
        q.add_argument("weights", type=expand)
        q.add_argument("folder", type=expand)
        q.add_argument("--workers", type=int, default=0)
        q.add_argument("--photos", type=int, default=640)
        q.add_argument("--rounds", type=int, default=3)
    modes.add_parser("driver").add_argument("--rows", type=int, default=100_000)
    a = p.parse_args(argv)
    if a.mode == "overhead":
        compare(a.weights, a.folder, a.photos, a.rounds)
    elif a.mode == "side":
        print(json.dumps(run_side(a.weights, a.folder, a.workers)))
    else:
        measure_driver(a.rows)


# ---- overhead ----


def compare(weights: Path, folder: Path, n_photos: int, rounds: int) -> None:
    """Print the rates of all sides, round by round, and the medians of their ratios to one process."""
    ratios: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as made:
        write_jpegs(photographs(folder), n_photos, Path(made))
        for _ in range(rounds):
            rates = {}
            for name, workers in SIDES.items():
                command = [sys.executable, "-m", "bench.cluster", "side", weights, made, "--workers", str(workers)]
                done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
                rates[name], spent, seconds, memory = json.loads(done.stdout.splitlines()[-1])
                ratios[name].append(rates[name] / rates["one process"])
                print(
                    f"{name}: {rates[name]:.1f} images/s ({ratios[name][-1]:.3f}), {1e3 * spent:.1f} ms of processor "
                    f"time each, started in {seconds:.0f} s, {memory:.0f} MB here",
                    flush=True,
                )
    for name, values in ratios.items():
        print(f"median: {name} {statistics.median(values):.3f}")


def run_side(weights: Path, folder: Path, workers: int) -> tuple[float, float, float, float]:
    """Return images per second, seconds of processor time for each (of this process and all that it has started),
    seconds until all was ready, and this process's peak memory in MB."""
    files, started = photographs(folder), time.perf_counter()
    if workers:
        from fewshot.cluster import ClusterEncoder, machines

        n = workers if workers > 0 else machines._cores()
        encoder = ClusterEncoder.load(weights, "cpu", BATCH, workers=n)
        encoder.model.pool.wait_for_all()
    else:
        encoder = Encoder.load(weights, "cpu", BATCH)
    with closing(encoder):
        encoder.encode_photos(files[: 3 * BATCH])
        ready, spent = time.perf_counter(), processor_seconds()
        encoder.encode_photos(files)
        rate, spent = len(files) / (time.perf_counter() - ready), processor_seconds() - spent
    return rate, spent / len(files), ready - started, peak()


def processor_seconds() -> float:
    """Return the processor time of this process and of its descendants, those included that have ended."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(stat.parent.name)
        parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks[pid] for pid in family) / os.sysconf("SC_CLK_TCK")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- the driver ----


def measure_driver(n_rows: int) -> None:
    """Print how many rows a second come from real and instantaneous workers, and what the driver spends on each."""
    logging.getLogger("jclip").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        photos = draw(Path(folder, "photos"), n_rows)
        for nodes in (1, 2, 4):
            with nodes_here(nodes) as address:
                report(f"{nodes} nodes, the demo's CLIP", address, nodes, photos[:4096], BATCH, None)
        for batch in (32, 256):
            for kind, is_far in (("read by path", False), ("sent by Ray", True)):
                for nodes in (1, 4):
                    with nodes_here(nodes) as address:
                        name = f"{nodes} nodes, instantaneous, batches of {batch}, {kind}"
                        chosen = photos[: n_rows // 10] if is_far else photos
                        report(name, address, nodes, chosen, batch, instantaneous(is_far))


def report(name: str, address: str, workers: int, photos: list, batch: int, worker: type | None) -> None:
    from fewshot.cluster import ClusterEncoder
    from fewshot.cluster.worker import Worker

    encoder = ClusterEncoder.load(TINY, "cpu", batch, None, False, "float32", address, workers, worker or Worker)
    if worker:
        encoder = with_fields(encoder, model=replace(encoder.model, width=ROW))
    with closing(encoder), tempfile.TemporaryDirectory() as store:
        encoder.model.pool.wait_for_all()
        encoder.encode_photos(photos[: 4 * batch * workers])
        stored = with_fields(encoder, store=Store(Path(store), encoder.width))
        wall, cpu = time.perf_counter(), time.process_time()
        stored.encode_photos(photos)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    n = len(photos)
    print(
        f"{name}: {n / wall:.0f} rows/s; the driver spends {1e6 * cpu / n:.0f} us on each, so {n / cpu:.0f} rows/s on "
        f"a processor of its own; peak {peak():.0f} MB",
        flush=True,
    )


def with_fields(encoder: Encoder, **fields) -> Encoder:
    return type(encoder)(**{**vars(encoder), **fields})


def instantaneous(is_far: bool) -> type:
    """Make a Worker that neither reads nor computes; with is_far, files are sent to it."""
    from fewshot.cluster.messages import Done
    from fewshot.cluster.worker import Worker

    class Instantaneous(Worker):
        def sees(self, path, size, sha256):
            return not is_far

        def step(self, work):
            before = self.started.popleft() if self.started else None
            if work:
                self.started.append(work)
            if before is None:
                return None
            rows = np.random.default_rng(before.number).standard_normal((len(before.indices), ROW))
            return Done(before.number, Encoded(unit(rows), {}))

    return Instantaneous


def draw(folder: Path, n: int) -> list[Photo]:
    """Write n JPEGs of about 100 kB, most of which are links to others, and return them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        if i < N_FILES:
            coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).resize((500, 375))
            coarse.save(folder / f"{i}.jpg", quality=95)
        else:
            os.link(folder / f"{i % N_FILES}.jpg", folder / f"{i}.jpg")
    return [Photo(folder, f"{i}.jpg", UNKNOWN) for i in range(n)]


@contextmanager
def nodes_here(n: int) -> Iterator[str]:
    """Start a cluster of n nodes on this machine, with a processor each as far as Ray knows, and yield its address."""
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    for _ in range(n - 1):
        cluster.add_node(**options)
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
