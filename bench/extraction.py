"""Compare the rate at which JPEG files become features with the rate of the image tower alone; measure peak memory.

    python -m bench.extraction WEIGHTS FOLDER [--photos 1920] [--rounds 3] [--precision half]

Photographs found below FOLDER are written as 500 x 375 JPEGs of quality 90 into a temporary folder. Tower and files
take turns in one process; both read 32 at a time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot.data import photographs
from fewshot.encoder import Encoder
from jclip import runtime
from jclip.paths import expand

BATCH = 32


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("weights", type=expand)
    p.add_argument("folder", type=expand)
    p.add_argument("--photos", type=int, default=1920)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--precision", choices=runtime.PRECISIONS, default="float32")
    a = p.parse_args(argv)
    encoder = Encoder.load(a.weights, "cpu", BATCH, precision=a.precision)
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(photographs(a.folder), a.photos, Path(folder))
        run_tower(encoder, 2)
        ratios = []
        for _ in range(a.rounds):
            tower = run_tower(encoder, 12)
            started = time.perf_counter()
            encoder.encode_photos(files, "files")
            read = len(files) / (time.perf_counter() - started)
            ratios.append(read / tower)
            print(f"tower {tower:.1f} images/s, files {read:.1f} images/s: {ratios[-1]:.0%}", flush=True)
    print(
        f"median: files at {statistics.median(ratios):.1%} of the tower; peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )


def write_jpegs(sources: list[Path], n: int, folder: Path) -> list[Path]:
    """Write n JPEGs of 500 x 375 and quality 90 from the sources, in turn, and return their paths."""
    files = [folder / f"{i}.jpg" for i in range(n)]
    for i, file in enumerate(files):
        with Image.open(sources[i % len(sources)]) as image:
            image.convert("RGB").resize((500, 375)).save(file, quality=90)
    return files


def run_tower(encoder: Encoder, batches: int) -> float:
    """Return the images per second of the image tower, from normalised pixels in memory."""
    jt, side = runtime.jittor(), encoder.preprocess.resolution
    pixels = np.random.default_rng(0).standard_normal((BATCH, 3, side, side), np.float32)
    started = time.perf_counter()
    for _ in range(batches):
        with jt.no_grad():
            encoder.model.encode_image(jt.array(pixels)).numpy()
    return batches * BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
