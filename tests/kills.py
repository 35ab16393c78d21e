"""The scripts killed while they write, at seeded moments: every file must be the old one or the new one, whole.

    python -m tests.kills FOLDER KILLS

FOLDER/output holds text.npz, support.npz and test.npz. Each run is a child that is killed (SIGKILL) at one of the calls
that it makes from the first temporary file on; others write without end and are killed from outside. Prints, as JSON,
how often each file was the old and the new one, and what was neither. test_kills.py runs it.
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
    found = {"kills": 0, "files": {}, "result.txt and result.zip of different runs": 0, "failures": []}
    adapters = {}
    for which in train:
        finished(train[which])
        finished(lambda: predict.main([]))
        adapters[which] = {name: Path(name).read_bytes() for name in (*TRAIN, *PREDICT)}
    for names, run in ((TRAIN, train["new"]), (PREDICT, lambda: predict.main([]))):
        put(adapters["old"])
        if names is PREDICT:
            Path("output/adapter.npz").write_bytes(adapters["new"]["output/adapter.npz"])
        before = {name: Path(name).read_bytes() for name in names}
        calls = finished(run)
        after = {name: Path(name).read_bytes() for name in names}
        for at in seeded(calls, kills):
            put(before)
            child = os.fork()
            if not child:
                killed_at(at, run)
            found["kills"] += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            look(names, before, after, f"call {at}", found)
        finished(run)  # what kills left behind is in nobody's way
    outside(kills // 4, found)
    print(json.dumps(found, indent=1))
    return bool(found["failures"])


def seeded(calls: int, kills: int) -> list[int]:
    """So many moments of a run, its first and last ones among them."""
    rng = random.Random(1)
    return sorted({0, 1, calls - 1, *(rng.randrange(calls) for _ in range(kills // 2 - 3))})


def finished(run: Callable) -> int:
    """Let a child run to its end; how many calls it made from its first temporary file on."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        counted = killed_at(NEVER, run, leave=False)
        os.write(write, str(counted[0]).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        calls = int(pipe.read())
    os.waitpid(child, 0)
    return calls


def killed_at(at: int, run: Callable, leave: bool = True) -> list[int]:
    """Run, and be killed at call number `at`, counted from the first temporary file on."""
    counted, mkstemp = [0], tempfile.mkstemp

    def count(*_):
        if counted[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        counted[0] += 1

    def first(*arguments, **named):
        sys.setprofile(count)
        return mkstemp(*arguments, **named)

    tempfile.mkstemp = first
    with contextlib.redirect_stdout(io.StringIO()):
        code = run()
    sys.setprofile(None)
    if code or leave:
        os._exit(code or 0)
    return counted


def put(files: dict[str, bytes]) -> None:
    for left in (*Path().glob(".*.part"), *Path("output").glob(".*.part")):
        left.unlink()
    for name, content in files.items():
        Path(name).write_bytes(content)


def look(names, before: dict, after: dict, when: str, found: dict) -> None:
    """Note for each file whether it is the old one or the new one."""
    which = {}
    for name in names:
        content = Path(name).read_bytes()
        is_old, is_new = same(name, content, before[name]), same(name, content, after[name])
        which[name] = "old" if is_old else "new" if is_new else "neither"
        counts = found["files"].setdefault(name, {"old": 0, "new": 0})
        if which[name] == "neither":
            found["failures"].append(f"{when}: {name} of {len(content)} bytes is neither the old one nor the new one")
        else:
            counts[which[name]] += 1
    others = {path.name for path in (*Path().iterdir(), *Path("output").iterdir())} - {
        Path(name).name
        for name in (*TRAIN, *PREDICT, "output/text.npz", "output/support.npz", "output/test.npz", "output", ".lock")
    }
    if any(not (name.startswith(".") and name.endswith(".part")) for name in others):
        found["failures"].append(f"{when}: left behind {sorted(others)}")
    found["result.txt and result.zip of different runs"] += (
        names is PREDICT and which["result.txt"] != which["result.zip"]
    )


def same(name: str, content: bytes, other: bytes) -> bool:
    if not name.endswith(".json"):
        return content == other
    try:
        return {**json.loads(content), "seconds": 0} == {**json.loads(other), "seconds": 0}
    except ValueError:
        return False


def outside(kills: int, found: dict) -> None:
    """Children that write two files in turn, without end, killed from outside after some milliseconds."""
    rng = random.Random(1)
    kinds = [
        artifacts.Split(
            np.tile(np.eye(512, dtype=np.float32)[[i]], (3000, 1)),
            np.full(3000, i),
            np.array([str(n) for n in range(3000)]),
            {},
        )
        for i in (0, 1)
    ]
    whole = []
    for kind in kinds:
        artifacts.write(Path("big.npz"), kind)
        whole.append(Path("big.npz").read_bytes())
    for _ in range(kills):
        child = os.fork()
        if not child:
            while True:
                for kind in kinds:
                    artifacts.write(Path("big.npz"), kind)
        time.sleep(rng.uniform(0.001, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found["kills"] += 1
        content = Path("big.npz").read_bytes()
        counts = found["files"].setdefault("a file written without end", {"old": 0, "new": 0})
        if content in whole:
            counts[["old", "new"][whole.index(content)]] += 1
        else:
            found["failures"].append(f"big.npz of {len(content)} bytes is neither of the two")
        put({})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
