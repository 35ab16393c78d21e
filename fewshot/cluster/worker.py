"""A worker: an encoder in a process of its own, which Ray starts on any machine. Does not import Ray."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

import numpy as np

from jclip import features, jittor_cache, pillow, runtime, weights
from jclip.errors import ClipError, Unreadable
from jclip.features import Encoded
from jclip.reading import Batch, ReadAhead

from ..encoder import MAX_READERS, PixelReader
from .files import same_file
from .messages import ELSEWHERE, Done, Setup, Work, facts

TEXT_TO_WARM_UP = "a photo"
PHOTOGRAPHS = "jclip-photographs-"  # how the folders of photographs that were sent begin
DEATHS = 2  # of the process that decodes a photograph, until it is taken for unreadable


class Worker:
    """A CLIP that computes one batch while its reading processes decode the next.

    Parameters
    ----------
    setup : Setup
    """

    def __init__(self, setup: Setup):
        self.setup = setup
        self.model = self.readers = self.folder = None
        self.started: deque[tuple[Work, list]] = deque()  # (batch, what the reading processes got of it)

    def hello(self) -> tuple[str, int]:
        """Return the machine's name and the process's number, as soon as the process runs."""
        return platform.node(), os.getpid()

    def start(self, sent=None) -> dict[str, str] | None:
        """Load the weights, and compute once, so that Jittor has compiled what is needed.

        Parameters
        ----------
        sent : (dict of str to array, ModelSettings), optional
            Weights that came through Ray; without them they are read from the path in `setup`.

        Returns
        -------
        dict of str to str, or None
            `facts` of this machine; None if the file at the path is not the driver's.
        """
        os.environ["OMP_NUM_THREADS"] = str(self.setup.threads)  # before Jittor is imported
        pillow.apply(self.setup.pillow)
        if sent is None and not self._has_weights():
            return None
        state, settings = sent or weights.read_model(self.setup.weights)
        there = facts(state, settings)
        with _one_compiles():
            runtime.use(self.setup.device, self.setup.precision)
            from jclip.model import build_model  # imports Jittor, which `use` has checked

            self.model = build_model(dict(state), self.setup.precision, settings)
            side = self.model.visual.input_resolution
            black = np.zeros((self.setup.batch_size, side, side, 3), np.uint8)
            list(features.image_features(self.model, black, np.asarray, self.setup.batch_size))
            list(features.text_features(self.model, [TEXT_TO_WARM_UP]))
        remove_left_behind()
        return there

    def _has_weights(self) -> bool:
        try:
            return weights.sha256(self.setup.weights) == self.setup.weights_sha256
        except (ClipError, OSError):
            return False

    def sees(self, path: str, size: int, sha256: str) -> bool:
        """Return whether this machine has the driver's photographs: whether one of them is the same file here."""
        return same_file(path, size, sha256)

    def step(self, work: Work | None) -> Done | None:
        """Start to read a batch, if there is one, and compute the one that the call before started, if any."""
        before = self.started[0] if self.started else None
        if work:
            items = self._items(work)
            self.started.append((work, items))
            self._start_reading(items)
        if before is None:
            return None
        encoded = self._photographs(*before) if before[0].items else self._texts(before[0])
        self.started.popleft()
        if before[0].contents is not None:
            shutil.rmtree(self._folder(before[0]), ignore_errors=True)
        return Done(before[0].number, encoded)

    def _photographs(self, work: Work, items: list) -> Encoded:
        try:
            if not self._read_ahead().started:  # a process was killed before this batch was started
                raise BrokenProcessPool
            batch = self._read_ahead().finish()
        except BrokenProcessPool:
            batch = self._read_one_by_one(items)
            for _, later in list(self.started)[1:]:
                self._start_reading(later)

        def pixels(index: int) -> np.ndarray:
            if index in batch.failures:
                raise Unreadable(batch.failures[index])
            return batch.pixels[index]

        return next(features.image_features(self.model, range(len(items)), pixels, self.setup.batch_size))

    def _texts(self, work: Work) -> Encoded:
        rows = np.empty((len(work.indices), self.model.visual.output_dim), np.float32)
        for encoded in features.text_features(self.model, work.texts, work.batch_size):
            rows[encoded.indices] = encoded.rows
        return Encoded(rows, {})

    # ---- reading ----

    def _read_ahead(self) -> ReadAhead:
        if self.readers is None:
            processes = max(1, min(MAX_READERS[self.setup.device], self.setup.threads))
            self.readers = ReadAhead(read, self.model.visual.input_resolution, self.setup.batch_size, processes)
        return self.readers

    def _start_reading(self, items: list) -> None:
        try:
            if items:
                self._read_ahead().start(items)
        except BrokenProcessPool:
            pass  # found when the batch is to be computed

    def _read_one_by_one(self, items: list) -> Batch:
        """Read a batch after a reading process was killed, and find out which photograph kills it, if one does."""
        self.readers.close()
        self.readers = None
        side = self.model.visual.input_resolution
        pixels, failures = np.zeros((len(items), side, side, 3), np.uint8), {}
        single = ReadAhead(read, side, 1, 1)
        for index, item in enumerate(items):
            for death in range(1, DEATHS + 1):
                try:
                    single.start([item])
                    one = single.finish()
                except BrokenProcessPool:
                    single.close()
                    single = ReadAhead(read, side, 1, 1)
                    if death == DEATHS:
                        failures[index] = f"the process that decodes it was killed, {DEATHS} times"
                else:
                    pixels[index] = one.pixels[0]
                    if one.failures:
                        failures[index] = one.failures[0]
                    break
        single.close()
        return Batch(pixels, failures)

    def _items(self, work: Work) -> list:
        """Return what `read` takes, after writing the contents that were sent into files, which Pillow needs."""
        if work.contents is None:
            paths = [str(photo.path) for photo, _ in work.items]
            return [
                (work.reader, path, photo.name, number, size)
                for path, (photo, number), size in zip(paths, work.items, work.sizes)
            ]
        folder, items = self._folder(work), []
        folder.mkdir()
        for index, ((photo, number), content) in enumerate(zip(work.items, work.contents)):
            path = folder / f"{index}{Path(photo.name).suffix}"
            if isinstance(content, bytes):
                path.write_bytes(content)
            items.append((work.reader, str(path), photo.name, number, None if isinstance(content, bytes) else content))
        return items

    def _folder(self, work: Work) -> Path:
        if self.folder is None:
            self.folder = tempfile.mkdtemp(prefix=f"{PHOTOGRAPHS}{os.getpid()}-")
        return Path(self.folder, str(work.number))


def read(item: tuple[PixelReader, str, str, int, int | str | None]) -> np.ndarray:
    """Return the pixels of a photograph, in a reading process.

    Parameters
    ----------
    item : (reader, path, name, view, expected)
        `expected` is the size that the file must have, or the cause if the driver could not read it, or None.

    Raises
    ------
    Unreadable
        With the cause ELSEWHERE if the file is not there, or is another one.
    """
    reader, path, name, number, expected = item
    if isinstance(expected, str):
        raise Unreadable(expected)
    if expected is not None and not _has_size(path, expected):
        raise Unreadable(ELSEWHERE)
    return reader.pixels(path, name, number)


def _has_size(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size and os.access(path, os.R_OK)
    except OSError:
        return False


@contextmanager
def _one_compiles() -> Iterator[None]:
    """Let one process of this user on this machine pass, and then all others at once.

    The first one compiles what Jittor's cache lacks; the others find it there.
    """
    with open(jittor_cache.folder() / f"start-{platform.node()}.lock", "a+") as file:  # homes may be shared
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # compilers that Jittor forks do not inherit it
        except (BlockingIOError, PermissionError):
            fcntl.lockf(file, fcntl.LOCK_SH)
        yield


def remove_left_behind() -> None:
    """Remove the photographs of workers on this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PHOTOGRAPHS}*-*"):
        pid = folder.name[len(PHOTOGRAPHS) :].partition("-")[0]
        if folder.stat().st_uid == os.getuid() and not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
