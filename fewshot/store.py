"""A store of feature rows on disk: a folder of part files, with a key for each row.

A key is a hash of everything that a row depends on (`make_key`), so a row is never stale. A part is an .npy file of
keys and rows, written atomically and named by the SHA-256 of its content. The name of a damaged part does not match its
content, and its rows are computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jclip.files import atomic_write
from jclip.paths import expand

from .errors import TaskError
from .files import remove_unfinished

ROWS_PER_PART = 256  # rows per part; a killed run loses at most this many
SPARE = 500_000  # unrequested rows that `tidy` keeps: 1 GB for ViT-B/32


def make_key(*values) -> bytes:
    """Return the SHA-256 (32 bytes) of values that json.dumps accepts."""
    return hashlib.sha256(json.dumps(values).encode()).digest()


class Store:
    """A mapping from keys to rows in a folder that only one process may use at a time.

    Parameters
    ----------
    folder : Path
    width : int
        Length of a row.

    Attributes
    ----------
    requested : set of bytes
        The keys that were requested since the store was opened.
    computed : int
        The number of rows written since then.
    """

    def __init__(self, folder: Path, width: int):
        self.folder = expand(folder)
        self.width = width
        self.dtype = np.dtype([("key", "V32"), ("row", "<f4", (width,))])
        self.requested: set[bytes] = set()
        self.computed = 0
        self._locations: dict[bytes, tuple[Path, int]] = {}  # (part, index of the row in it)
        self._pending: list[tuple[bytes, np.ndarray]] = []  # fewer than ROWS_PER_PART rows, not on disk yet
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        for path in self._parts():
            part = self._load(path)
            if self._fits(part):
                self._register(path, _keys(part))

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Return, in ascending order, the indices of the keys that have no row; of equal keys only the first."""
        self.requested.update(keys)
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            if key not in self._locations:
                first.setdefault(key, index)
        return list(first.values())

    def put(self, keys: Iterable[bytes], rows: np.ndarray) -> None:
        """Store rows, float32 (n, width), under their keys; they are written as soon as they fill a part, and by `get`.

        Raises
        ------
        OSError
            If the disk is full.
        """
        self._pending += zip(keys, rows)
        while len(self._pending) >= ROWS_PER_PART:
            self._write_pending()

    def get(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the rows of n keys, float32 (n, width); NaN for keys without a row.

        Raises
        ------
        TaskError
            If a part was damaged after the store was opened.
        """
        self.requested.update(keys)
        self._write_pending()
        rows = np.full((len(keys), self.width), np.nan, np.float32)
        locations: dict[Path, list[tuple[int, int]]] = {}
        for index, key in enumerate(keys):
            if key in self._locations:
                path, position = self._locations[key]
                locations.setdefault(path, []).append((index, position))
        for path, pairs in locations.items():
            part = self._load(path)
            if part is None:
                raise TaskError(f"{path}: damaged while this run was using it; run the same command again")
            indices, positions = np.array(pairs).T
            rows[indices] = part["row"][positions]
        return rows

    def clear(self) -> None:
        """Delete all rows, also those that are not written yet, and count from 0 again."""
        for path in self._parts():
            path.unlink()
        self._locations.clear()
        self._pending.clear()
        self.requested.clear()
        self.computed = 0

    @property
    def reused(self) -> int:
        """The number of requested rows that were already stored."""
        return sum(key in self._locations for key in self.requested) - self.computed

    def tidy(self) -> None:
        """Merge small parts and delete rows that were not requested, except up to SPARE that were written last."""
        rewritten: dict[bytes, np.ndarray] = {}  # rows of parts that are rewritten
        old, spare = [], SPARE
        for path in sorted(self._parts(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            part = self._load(path)
            keys = _keys(part)
            spare -= sum(key not in self.requested for key in keys)
            # kept: requested or spare, and `get` reads the row from this part
            kept = [
                i
                for i, key in enumerate(keys)
                if (key in self.requested or spare >= 0) and self._locations.get(key, (path, i)) == (path, i)
            ]
            # old: nothing to keep, or rows to drop, or a small part
            if not kept or (self._fits(part) and len(kept) < max(ROWS_PER_PART, len(keys))):
                old.append(path)
                rewritten.update((keys[i], part["row"][i]) for i in kept)
        items = list(rewritten.items())
        new = {self._write(items[start : start + ROWS_PER_PART]) for start in range(0, len(items), ROWS_PER_PART)}
        for path in set(old) - new:
            path.unlink()

    def _write_pending(self) -> None:
        if self._pending:
            part, self._pending = self._pending[:ROWS_PER_PART], self._pending[ROWS_PER_PART:]
            self._write(part)
            self.computed += len(part)

    def _write(self, items: Sequence[tuple[bytes, np.ndarray]]) -> Path:
        """Write (key, row) pairs as one part and return its path."""
        content = io.BytesIO()
        np.save(content, np.array(items, self.dtype))
        path = self.folder / f"{hashlib.sha256(content.getvalue()).hexdigest()}.npy"
        with atomic_write(path) as file:
            file.write(content.getvalue())
        self._register(path, [key for key, _ in items])
        return path

    def _load(self, path: Path) -> np.ndarray | None:
        """Return a part as an array of (key, row), or None if it is damaged."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        # checked first: numpy may raise any exception for a bad header
        if hashlib.sha256(content).hexdigest() != path.stem:
            return None
        part = np.load(io.BytesIO(content), allow_pickle=False)
        return part if part.dtype.names == self.dtype.names else None

    def _fits(self, part: np.ndarray | None) -> bool:
        """Return whether a part is undamaged and has this width; models of other widths may share the folder."""
        return part is not None and part.dtype == self.dtype

    def _register(self, path: Path, keys: list[bytes]) -> None:
        self._locations.update((key, (path, i)) for i, key in enumerate(keys))

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.npy"))


def _keys(part: np.ndarray | None) -> list[bytes]:
    """Return the keys of a part in order, or [] for a damaged part."""
    return [] if part is None else [key.tobytes() for key in part["key"]]
