"""Kill the scripts while they write, at seeded moments, and check that every file is the old or the new one, whole.

    python -m tests.kills FOLDER KILLS

FOLDER/output holds text.npz, support.npz and test.npz. A child process runs each script and kills itself (SIGKILL) at
one of its calls after it opens the first temporary file; other children write again and again and are killed from
outside. Prints as JSON how often each file was the old and the new one, and what was neither. test_kills.py runs it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import numpy as np

import predict
import train_adapter
from fewshot import artifacts

NEVER = 1 << 60
FIGURES = "output/metrics.json", "output/metrics.csv"
TRAIN, PREDICT = ("output/adapter.npz", *FIGURES), ("result.txt", "result.zip", *FIGURES)
train = {
    "old": lambda: train_adapter.main(["--method", "zero-shot"]),
    "new": lambda: train_adapter.main(["--method", "tip"]),
}


def main(folder: Path, kills: int) -> int:
    os.chdir(folder)
    report = {"kills": 0, "files": {}, "result.txt and result.zip of different runs": 0, "failures": []}
    contents = {}
    for which in train:
        run_to_end(train[which])
        run_to_end(lambda: predict.main([]))
        contents[which] = {name: Path(name).read_bytes() for name in (*TRAIN, *PREDICT)}
    for names, run in ((TRAIN, train["new"]), (PREDICT, lambda: predict.main([]))):
        restore(contents["old"])
        if names is PREDICT:
            Path("output/adapter.npz").write_bytes(contents["new"]["output/adapter.npz"])
        before = {name: Path(name).read_bytes() for name in names}
        calls = run_to_end(run)
        after = {name: Path(name).read_bytes() for name in names}
        for at in calls_to_kill_at(calls, kills):
            restore(before)
            child = os.fork()
            if not child:
                run_killed_at(at, run)
            report["kills"] += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            check_files(names, before, after, f"call {at}", report)
        run_to_end(run)  # what killed runs left behind does not disturb it
    kill_from_outside(kills // 4, report)
    print(json.dumps(report, indent=1))
    return bool(report["failures"])


def calls_to_kill_at(calls: int, kills: int) -> list[int]:
    """Draw half as many call numbers as `kills`, the first two and the last among them."""
    rng = random.Random(1)
    return sorted({0, 1, calls - 1, *(rng.randrange(calls) for _ in range(kills // 2 - 3))})


def run_to_end(run: Callable) -> int:
    """Run in a child to its end, and return how many calls it made from its first temporary file on."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        counted = run_killed_at(NEVER, run, leave=False)
        os.write(write, str(counted[0]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        calls = int(pipe.read())
    os.waitpid(child, 0)
    return calls


def run_killed_at(at: int, run: Callable, leave: bool = True) -> list[int]:
    """Run until this process kills itself at call number `at`, counted from the first temporary file on."""
    counted, mkstemp = [0], tempfile.mkstemp

    def count(*_):
        if counted[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        counted[0] += 1

    def start_counting(*arguments, **options):
        sys.setprofile(count)
        return mkstemp(*arguments, **options)

    tempfile.mkstemp = start_counting
    with contextlib.redirect_stdout(io.StringIO()):
        code = run()
    sys.setprofile(None)
    if code or leave:
        os._exit(code or 0)
    return counted


def restore(files: dict[str, bytes]) -> None:
    """Write the files, and remove what killed runs left half-written."""
    for left in (*Path().glob(".*.part"), *Path("output").glob(".*.part")):
        left.unlink()
    for name, content in files.items():
        Path(name).write_bytes(content)


def check_files(names, before: dict, after: dict, when: str, report: dict) -> None:
    """Record for each file whether it is the old one or the new one."""
    which = {}
    for name in names:
        content = Path(name).read_bytes()
        is_old, is_new = same(name, content, before[name]), same(name, content, after[name])
        which[name] = "old" if is_old else "new" if is_new else "neither"
        counts = report["files"].setdefault(name, {"old": 0, "new": 0})
        if which[name] == "neither":
            report["failures"].append(f"{when}: {name} of {len(content)} bytes is neither the old one nor the new one")
        else:
            counts[which[name]] += 1
    unexpected = {path.name for path in (*Path().iterdir(), *Path("output").iterdir())} - {
        Path(name).name
        for name in (*TRAIN, *PREDICT, "output/text.npz", "output/support.npz", "output/test.npz", "output", ".lock")
    }
    if any(not (name.startswith(".") and name.endswith(".part")) for name in unexpected):
        report["failures"].append(f"{when}: left behind {sorted(unexpected)}")
    report["result.txt and result.zip of different runs"] += (
        names is PREDICT and which["result.txt"] != which["result.zip"]
    )


def same(name: str, content: bytes, other: bytes) -> bool:
    """Compare two versions of a file; metrics.json also holds seconds, which differ."""
    if not name.endswith(".json"):
        return content == other
    try:
        return {**json.loads(content), "seconds": 0} == {**json.loads(other), "seconds": 0}
    except ValueError:
        return False


def kill_from_outside(kills: int, report: dict) -> None:
    """Kill children, each after some milliseconds, that write two versions of a file in turn without end."""
    rng = random.Random(1)
    versions = [
        artifacts.Split(
            np.tile(np.eye(512, dtype=np.float32)[[i]], (3000, 1)),
            np.full(3000, i),
            np.array([str(n) for n in range(3000)]),
            {},
        )
        for i in (0, 1)
    ]
    whole = []
    for version in versions:
        artifacts.write(Path("big.npz"), version)
        whole.append(Path("big.npz").read_bytes())
    for _ in range(kills):
        child = os.fork()
        if not child:
            while True:
                for version in versions:
                    artifacts.write(Path("big.npz"), version)
        time.sleep(rng.uniform(0.001, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        report["kills"] += 1
        content = Path("big.npz").read_bytes()
        counts = report["files"].setdefault("a file written without end", {"old": 0, "new": 0})
        if content in whole:
            counts[["old", "new"][whole.index(content)]] += 1
        else:
            report["failures"].append(f"big.npz of {len(content)} bytes is neither of the two")
        restore({})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
