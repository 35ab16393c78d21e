"""Size, memory and opening time of the report of a large task: 4,305 test photographs, 1,500 shots, 403 classes.

    python -m bench.report FOLDER [--test 4305] [--shots 1500] [--classes 403] [--keep DIR]

Features are random; the pictures are the photographs in and below FOLDER, each as often as needed. The page is opened
in a headless Chromium where there is one.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from fewshot import data as task_data
from fewshot.artifacts import Adapter, Split, Support, Text
from jclip.features import unit
from jclip.paths import expand
from report import data, publish
from tests import browser
from tip_adapter_utils import predict_logits

WIDTH = 512
OPENED = """(() => { const [page] = performance.getEntriesByType('navigation');
    return [page.domContentLoadedEventEnd, page.loadEventEnd]; })()"""
SCROLL = """(async () => { document.getElementById('more').click(); let worst = 0, last = performance.now();
    for (let i = 0; i < 120; i++) { scrollBy(0, 300); await new Promise(requestAnimationFrame);
        const now = performance.now(); worst = Math.max(worst, now - last); last = now; }
    return [worst, document.querySelectorAll('#grid .card').length]; })()"""


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("photos", type=expand, metavar="FOLDER")
    for option, default in (("--test", 4305), ("--shots", 1500), ("--classes", 403)):
        p.add_argument(option, type=int, default=default, metavar="N")
    p.add_argument("--keep", type=expand, metavar="DIR", help="where the page is left (default: nowhere)")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.keep or Path(temporary)
        make_photographs(folder, a.photos, a.test, a.shots)
        answers = make_answers(a.test, a.shots, a.classes)
        started = time.perf_counter()
        written = publish.write(folder / "report.html", answers, folder)
        seconds, memory = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{written.shown} photographs on the page, {written.pictures} pictures")
        for path in (folder / "report.html", written.json):
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
        print(f"written in {seconds:.0f} s, peak memory {memory:.0f} MB")
        if browser.find():
            with browser.Browser(Path(temporary) / "profile") as chromium:
                measure(chromium, folder / "report.html")


def make_photographs(folder: Path, source: Path, n_test: int, n_shots: int) -> None:
    """Link the photographs of `source` into folder/test and folder/train, each as often as needed."""
    photographs = cycle(task_data.photographs(source))
    for part, n in (("test/all", n_test), ("train", n_shots)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i, photograph in enumerate(islice(photographs, n)):
            (folder / part / f"{i}.jpg").unlink(missing_ok=True)
            (folder / part / f"{i}.jpg").symlink_to(photograph.resolve())


def make_answers(n_test: int, n_shots: int, n_classes: int) -> data.Answers:
    """Return the answers of zero-shot on random features around random texts."""
    rng = np.random.default_rng(0)
    texts = unit(rng.normal(size=(n_classes, WIDTH)))

    def around(labels):
        return unit(texts[labels] + 2.5 * rng.normal(size=(len(labels), WIDTH)) / WIDTH**0.5)

    of_shots, of_test = np.arange(n_shots) % n_classes, np.arange(n_test) % n_classes
    text = Text(texts, np.array([f"class {i}" for i in range(n_classes)]), 20.0)
    support = Support(around(of_shots)[:, None], of_shots, np.array([f"train/{i}.jpg" for i in range(n_shots)]))
    test = Split(around(of_test), of_test, np.array([f"all/{i}.jpg" for i in range(n_test)]))
    adapter = Adapter.without_cache("zero-shot", text)
    return data.Answers(adapter, test, predict_logits(adapter, test.features), support, None, {})


def measure(chromium: browser.Browser, path: Path) -> None:
    """Print how long the page takes to open, and the longest frame while it scrolls."""
    times = []
    for _ in range(3):
        chromium.open(path)
        times.append(chromium.js(OPENED)[1] / 1000)
    print(f"opened in {', '.join(f'{t:.2f}' for t in sorted(times))} s")
    worst, cards = chromium.js(SCROLL)
    print(f"scrolling {cards} photographs: longest frame {worst:.0f} ms")


if __name__ == "__main__":
    main()
