"""Feature rows that outlive the run that computed them: a folder of part files, and a key for each row.

A key is made of everything that a row depends on (`key_of`), so a row is never stale: whatever changes, changes the
key. A part is an .npy file of keys and rows, written whole and named by the SHA-256 of its content; a damaged part does
not fit its name, and its rows are computed anew.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .errors import TaskError
from .files import remove_unfinished, written_whole

CHUNK = 256  # rows of a part; a kill loses at most so many
SPARE = 500_000  # rows that stay though the run did not ask for them: 1 GB of ViT-B/32's


def key_of(*values) -> bytes:
    """Return the key, 32 bytes, of JSON-like values."""
    return hashlib.sha256(json.dumps(values).encode()).digest()


class Store:
    """Rows by key in a folder that one process at a time may use.

    Parameters
    ----------
    folder : Path
    width : int
        Length of a row.

    Attributes
    ----------
    asked : set of bytes
        The keys that were asked for since the store was opened.
    computed : int
        The number of rows that were put since then.
    """

    def __init__(self, folder: Path, width: int):
        self.folder = Path(folder)
        self.width = width
        self.form = np.dtype([("key", "V32"), ("row", "<f4", (width,))])
        self.asked: set[bytes] = set()
        self.computed = 0
        self._locations: dict[bytes, tuple[Path, int]] = {}  # part, and index of the row in it
        self._pending: list[tuple[bytes, np.ndarray]] = []  # fewer than CHUNK rows that are not on disk yet
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        for path in self._parts():
            part = self._load(path)
            if self._fits(part):
                self._register(path, _keys(part))

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return the indices of the keys without a row, in ascending order; of equal keys the first index."""
        self.asked.update(keys)
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key not in self._locations:
                first.setdefault(key, index)
        return list(first.values())

    def put(self, keys: Iterable[bytes], rows: np.ndarray) -> None:
        """Keep rows, float32 (n, width), under their keys; they are on disk at every CHUNK rows and at the next `get`.

        Raises
        ------
        OSError
            Where the disk is full.
        """
        self._pending += zip(keys, rows)
        while len(self._pending) >= CHUNK:
            self._write_pending()

    def get(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the rows of n keys, float32 (n, width); NaN where a key has none.

        Raises
        ------
        TaskError
            Where a part was damaged after the store was opened.
        """
        self.asked.update(keys)
        self._write_pending()
        rows = np.full((len(keys), self.width), np.nan, np.float32)
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for index, key in enumerate(keys):
            if key in self._locations:
                path, at = self._locations[key]
                wanted.setdefault(path, []).append((index, at))
        for path, pairs in wanted.items():
            part = self._load(path)
            if part is None:
                raise TaskError(f"{path}: damaged while this run was using it; run the same command again")
            indices, at = np.array(pairs).T
            rows[indices] = part["row"][at]
        return rows

    def clear(self) -> None:
        """Forget all rows."""
        for path in self._parts():
            path.unlink()
        self._locations.clear()

    @property
    def kept(self) -> int:
        """Number of rows that were asked for and were here already."""
        return sum(key in self._locations for key in self.asked) - self.computed

    def tidy(self) -> None:
        """Join small parts into whole ones and drop rows that were not asked for, except the SPARE written last."""
        loose: dict[bytes, np.ndarray] = {}  # rows of parts that are small or hold dropped rows
        old, spare = [], SPARE
        for path in sorted(self._parts(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            part = self._load(path)
            keys = _keys(part)
            spare -= sum(key not in self.asked for key in keys)
            alive = [
                at
                for at, key in enumerate(keys)
                if (key in self.asked or spare >= 0) and self._locations.get(key, (path, at)) == (path, at)
            ]
            if not alive or (self._fits(part) and len(alive) < max(CHUNK, len(keys))):
                old.append(path)
                loose.update((keys[at], part["row"][at]) for at in alive)
        items = list(loose.items())
        new = {self._write(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)}
        for path in set(old) - new:
            path.unlink()

    def _write_pending(self) -> None:
        if self._pending:
            chunk, self._pending = self._pending[:CHUNK], self._pending[CHUNK:]
            self._write(chunk)
            self.computed += len(chunk)

    def _write(self, items: Sequence[tuple[bytes, np.ndarray]]) -> Path:
        """Write (key, row) pairs as one part; return its path."""
        content = io.BytesIO()
        np.save(content, np.array(items, self.form))
        path = self.folder / f"{hashlib.sha256(content.getvalue()).hexdigest()}.npy"
        with written_whole(path) as file:
            file.write(content.getvalue())
        self._register(path, [key for key, _ in items])
        return path

    def _load(self, path: Path) -> np.ndarray | None:
        """Read a part, an array of (key, row); None where it is damaged."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != path.stem:  # first of all: numpy may raise anything for a bad header
            return None
        part = np.load(io.BytesIO(content), allow_pickle=False)
        return part if part.dtype.names == self.form.names else None

    def _fits(self, part: np.ndarray | None) -> bool:
        """Whether a part is whole and has rows of this width; models of other widths may share the folder."""
        return part is not None and part.dtype == self.form

    def _register(self, path: Path, keys: list[bytes]) -> None:
        self._locations.update((key, (path, at)) for at, key in enumerate(keys))

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.npy"))


def _keys(part: np.ndarray | None) -> list[bytes]:
    """Return the keys of a part in order; none of a damaged one."""
    return [] if part is None else [key.tobytes() for key in part["key"]]
