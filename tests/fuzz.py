"""Gives mutated files to every reader: none may run code, hang, fill the memory or end in a traceback.

    python -m tests.fuzz INPUTS [SEED]

Prints as JSON how many mutated files each reader has read and refused. The exit code is 1 if there was any other
outcome. The same arguments give the same files. test_fuzz.py runs it in a process of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import numpy as np

from fewshot import artifacts, data, prompts
from fewshot.rows import unit_rows
from jclip import weights
from jclip.weights import unpickle
from tests.watch import Watch, forget_peak, limit_memory, peak

GOLDEN = Path(__file__).parent / "golden" / "weights"
WEIGHTS = (
    "release.pt",
    "nested.pth",
    "legacy.pt",
    "bfloat16.pt",
    "jclip.pkl",
    "hugging_face.safetensors",
    "open_clip.safetensors",
    "expected.npz",
)
NUMBERS = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
TEXTS = [
    b"\0",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\r",
    b"\n",
    b"\x1b[2J",
    b"[" * 2000,
    b'{"":' * 500,
    b"1e999",
    b"9" * 5000,
    b"-1",
    b"NaN",
    b"..",
    b"/",
    b"\\",
    b"{}",
    b"{",
    b"}",
    b'"',
    b'"default": "a {}",',
    b" 0\n",
    b" 4294967296\n",
]


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return `content` with one to three random changes: bits, bytes, insertions, deletions, splices, numbers."""
    result = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(min(len(result), rng.choice((200, 4000, len(result) or 1))) or 1) if result else 0
        if result and rng.random() < 0.2:
            at = max(0, len(result) - 1 - at)
        end = at + rng.choice((1, 2, 8, 100, 5000))
        number = rng.choice(NUMBERS + [len(result)])
        other = rng.choice(others)
        start = rng.randrange(len(other) or 1)
        change = rng.randrange(9)
        if change == 0 and result:
            result[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            result[at : at + 1] = bytes([rng.randrange(256)])
        elif change == 2:
            result[at:at] = rng.choice(TEXTS)
        elif change == 3:
            del result[at:end]
        elif change == 4:
            del result[at:]
        elif change == 5:
            result[at:end] = other[start : start + rng.choice((1, 8, 100, 5000))]
        elif change == 6:
            width = rng.choice((1, 2, 4, 8))
            result[at : at + width] = (number % 256**width).to_bytes(width, "little")
        elif change == 7:  # a number in text
            matches = list(re.finditer(rb"[0-9]+", bytes(result[:20000])))
            if matches:
                match = rng.choice(matches)
                result[match.start() : match.end()] = str(number).encode()
        else:
            result[at:at] = result[at:end] * rng.choice((1, 2, 50))
    return bytes(result)


def mutated_inside(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return `content` with changes that checksums and lengths do not reveal.

    Mutated are a member of a zip archive, a pickle before its SHA-1 is computed, or the header of safetensors.
    """
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        names = [name for name in members if name.endswith("data.pkl")] or list(members)
        chosen = rng.choice(names if rng.random() < 0.8 else list(members))
        packed = io.BytesIO()
        with zipfile.ZipFile(
            packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), compresslevel=1
        ) as archive:
            for name, member in members.items():
                archive.writestr(
                    name,
                    mutated(member, [member, *map(members.get, rng.sample(list(members), 1))], rng)
                    if name == chosen
                    else member,
                )
        return packed.getvalue()
    if content.endswith(unpickle.JITTOR_MAGIC):
        changed = mutated(content[: -20 - len(unpickle.JITTOR_MAGIC)], others, rng)
        return changed + hashlib.sha1(changed).digest() + unpickle.JITTOR_MAGIC
    if content[8:9] == b"{":
        length = int.from_bytes(content[:8], "little")
        header = mutated(content[8 : 8 + length], [content[8 : 8 + length]], rng)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    return mutated(content, others, rng)


def example(kind: type):
    """Return a small artefact of a class of `artifacts`."""
    sizes, rng = dict(C=3, N=4, V=2, D=8, M=5), np.random.default_rng(0)
    values = {}
    for field in artifacts._array_fields(kind):
        shape = tuple(sizes[letter] for letter in field.metadata["dims"])
        rows = rng.normal(size=shape)
        values[field.name] = {
            "f": unit_rows(rows) if shape else 1.5,
            "i": np.zeros(shape, np.int64),
            "U": np.array([f"Animal_{i}" for i in range(len(rows))]) if shape else "tip",
        }[field.metadata["type_code"]]
    return kind(**values, meta={"weights_sha256": "ab" * 32, "groups": ["Animal"] * 3})


def targets(folder: Path) -> Iterator[tuple[str, list[bytes], Path, Callable]]:
    """Yield for each reader its name, valid contents, the path of the mutated file, and a function that reads it."""
    whole = [(GOLDEN / name).read_bytes() for name in WEIGHTS]
    for name, content in zip(WEIGHTS, whole):
        path = folder / name
        yield name, [content, *whole], path, lambda path=path: weights.read(path)
    for kind in (artifacts.Text, artifacts.Support, artifacts.Split, artifacts.Adapter):
        path = folder / f"{kind.__name__.lower()}.npz"
        artifacts.write(path, example(kind))
        packed = io.BytesIO()
        np.savez_compressed(packed, **dict(np.load(path)))
        yield (
            path.name,
            [path.read_bytes(), packed.getvalue()],
            path,
            lambda path=path, kind=kind: artifacts.read(path, kind),
        )
    for name in ("TestSetB/1.jpg", "TrainSet/Bear/1.jpg", "TrainSet/Bear/2.jpg", "TrainSet/Bee/a b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    lists = {
        "classes_b.txt": b"Animal_Bear 0\nAnimal_Bee 1\nFood-101_hot_dog 2",
        "train.txt": b"TrainSet/Bear/1.jpg 0\r\nTrainSet/Bear/2.jpg 0\n\nTrainSet/Bee/a b.jpg 1\n",
    }
    words = {
        "templates.json": b'{"default": "a photo of a {}.", "Animal": ["a {} in the wild.", "a {} at rest."]}',
        "Animal_prompt.json": '{"Bear": ["A bear has round ears."], "Bee": ["Eine Biene ist klein.", "蜜蜂"]}'.encode(),
        "names.json": b'{"Animal_Bee": "bumble bee"}',
    }
    for name, content in {**lists, **words}.items():
        (folder / name).write_bytes(content)
        reads = (
            (lambda: data.read_task(folder))
            if name in lists
            else (lambda: prompts.read(["Animal_Bear", "Animal_Bee", "teapot"], folder))
        )
        yield name, [content, *lists.values(), *words.values()], folder / name, reads


def main(inputs: int, seed: int) -> int:
    logging.disable()  # a remark on a file that is read is no output of the reader
    watched = Watch()
    outcomes: dict[str, dict[str, int]] = {}
    failures = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        readers = list(targets(Path(folder)))
        for _, whole, path, read in readers:
            path.write_bytes(whole[0])
            read()  # whole files are read; what is imported late is imported now
        forget_peak()
        before = peak()
        limit_memory()
        for name, whole, path, read in readers:
            rng = random.Random(f"{name} {seed}")
            counts = outcomes[name] = {"read": 0, "refused": 0}
            for number in range(max(1, inputs // len(readers))):
                path.write_bytes(
                    (mutated_inside if rng.random() < 0.6 else mutated)(
                        rng.choice(whole[: 2 if path.suffix == ".npz" else 1]), whole, rng
                    )
                )
                outcome, reason = watched(read)
                if outcome in counts:
                    counts[outcome] += 1
                else:
                    failures.append(f"{name}, input {number}: {outcome} {reason}")
            path.write_bytes(whole[0])
    total = {outcome: sum(counts[outcome] for counts in outcomes.values()) for outcome in ("read", "refused")}
    print(
        json.dumps(
            {
                "tried": sum(total.values()) + len(failures),
                **total,
                "failures": failures,
                "seconds": round(time.perf_counter() - started, 1),
                "slowest": round(watched.slowest, 2),
                "memory": peak() - before,
                "readers": outcomes,
            },
            indent=1,
        )
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
