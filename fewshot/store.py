"""Feature rows that outlive the run that computed them: a folder of part files, and a key for each row.

A key says all that a row depends on (`key_of`), so a row is never stale: what has changed asks for another key. A part
is an .npy of keys and rows whose name is the SHA-256 of its content, written whole; a damaged one is not what its name
says, and its rows are computed anew.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Callable

import numpy as np

from .errors import TaskError
from .files import remove_unfinished, written_whole

CHUNK = 256  # rows a part: as many as a kill can lose
# rows that stay though a run did not ask for them: a trial must not cost the work of the days before; 1 GB of
# ViT-B/32's
SPARE = 500_000


def key_of(*values) -> bytes:
    """The key of what JSON-like values describe, 32 bytes."""
    return hashlib.sha256(json.dumps(values).encode()).digest()


class Store:
    """Rows of `width` in `folder`, which one process at a time may use.

    Attributes
    ----------
    asked : the keys that were asked for since the store was opened
    computed : how many of them had to be computed
    """

    def __init__(self, folder: Path, width: int):
        self.folder = Path(folder)
        self.width = width
        self.form = np.dtype([("key", "V32"), ("row", "<f4", (width,))])
        self.asked: set[bytes] = set()
        self.computed = 0
        self._places: dict[bytes, tuple[Path, int]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        for path in self._parts():
            part = self._load(path)
            if self._fits(part):
                self._register(path, _keys(part))

    def clear(self) -> None:
        """Forget all rows."""
        for path in self._parts():
            path.unlink()
        self._places.clear()

    def rows(
        self, keys: Sequence[bytes], compute: Callable[[list[int]], Iterable[tuple[Sequence[int], np.ndarray]]]
    ) -> np.ndarray:
        """The rows of n keys, float32 (n, width); of those that `compute` leaves out, NaN.

        compute(places) is called with the places in `keys` of all rows that are not here, in ascending order, each key
        once; it yields batches of (places, rows), which are on disk every CHUNK rows.
        """
        self.asked.update(keys)
        absent: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in self._places:
                absent.setdefault(key, place)
        if absent:
            computed = (
                (keys[place], row)
                for places, rows in compute(list(absent.values()))
                for place, row in zip(places, rows)
            )
            for path, written in self._write(computed):
                self._register(path, written)
                self.computed += len(written)
        return self._read(keys)

    def tally(self) -> tuple[int, int]:
        """How many of the rows that were asked for had to be computed, and how many were here."""
        return self.computed, sum(key in self._places for key in self.asked) - self.computed

    def tidy(self) -> None:
        """Put few rows together in whole parts; of rows that were not asked for, also of other widths, SPARE stay, in
        the parts written last."""
        loose: dict[bytes, np.ndarray] = {}  # rows of parts that hold few, or others too
        old, spare = [], SPARE
        for path in sorted(self._parts(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            part = self._load(path)
            keys = _keys(part)
            spare -= sum(key not in self.asked for key in keys)
            alive = [
                at
                for at, key in enumerate(keys)
                if (key in self.asked or spare >= 0) and self._places.get(key, (path, at)) == (path, at)
            ]
            if not alive or self._fits(part) and len(alive) < max(CHUNK, len(keys)):
                old.append(path)
                loose.update((keys[at], part["row"][at]) for at in alive)
        new = list(self._write(loose.items()))
        for path, keys in new:
            self._register(path, keys)
        for path in set(old) - {path for path, _ in new}:
            path.unlink()

    def _read(self, keys: Sequence[bytes]) -> np.ndarray:
        rows = np.full((len(keys), self.width), np.nan, np.float32)
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for place, key in enumerate(keys):
            if key in self._places:
                path, at = self._places[key]
                wanted.setdefault(path, []).append((place, at))
        for path, pairs in wanted.items():
            part = self._load(path)
            if part is None:
                raise TaskError(f"{path}: damaged while this run was using it; run the same command again")
            places, at = np.array(pairs).T
            rows[places] = part["row"][at]
        return rows

    def _write(self, items: Iterable[tuple[bytes, np.ndarray]]) -> Iterator[tuple[Path, list[bytes]]]:
        """Put (key, row) pairs down, CHUNK at a time; yields each part's path and keys once it is on disk."""
        items = iter(items)
        while chosen := list(islice(items, CHUNK)):
            part = np.array(chosen, self.form)
            content = io.BytesIO()
            np.save(content, part)
            path = self.folder / f"{hashlib.sha256(content.getvalue()).hexdigest()}.npy"
            with written_whole(path) as file:
                file.write(content.getvalue())
            yield path, [key for key, _ in chosen]

    def _load(self, path: Path) -> np.ndarray | None:
        """A part's content, array of (key, row); None where it is damaged."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if (
            hashlib.sha256(content).hexdigest() != path.stem
        ):  # looked at first: of a damaged header numpy raises whatever it likes
            return None
        part = np.load(io.BytesIO(content), allow_pickle=False)
        return part if part.dtype.names == self.form.names else None

    def _fits(self, part: np.ndarray | None) -> bool:
        """Whether a part is whole and of this store's width; models of other widths may have put theirs into the same
        folder."""
        return part is not None and part.dtype == self.form

    def _register(self, path: Path, keys: list[bytes]) -> None:
        self._places.update((key, (path, at)) for at, key in enumerate(keys))

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.npy"))


def _keys(part: np.ndarray | None) -> list[bytes]:
    """The keys of a part, in their order; none of a damaged one."""
    return [] if part is None else [key.tobytes() for key in part["key"]]
