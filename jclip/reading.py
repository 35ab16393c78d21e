"""Images read ahead of the model, by processes of their own: Jittor holds Python's lock while it computes.

The pixels go through shared memory that holds two batches, so what is read ahead never grows, and what passes between
the processes is so little that none waits for the lock of another.

The processes do not run the caller's script, as those of multiprocessing do: its work would be done twice, unless all
of it stands below `if __name__ == "__main__"`.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from itertools import chain, islice
from multiprocessing import connection, context, current_process, parent_process
from multiprocessing.shared_memory import SharedMemory
from typing import Callable, NamedTuple

import numpy as np

from . import pillow
from .errors import ClipError, Unreadable

N_AHEAD = 2  # batches that the shared memory holds
NICENESS = 19  # of the reading processes: what they take from one computing thread delays all of them


class Batch(NamedTuple):
    """Images that are computed together, and those among them that cannot be read."""

    pixels: np.ndarray  # uint8 (n, resolution, resolution, 3); an image that cannot be read is black
    failures: dict[int, str]  # index in the batch -> why the image cannot be read


def batches(items: Iterable, read: Callable, resolution: int, batch_size: int, workers: int) -> Iterator[Batch]:
    """Read images in order and yield them in batches.

    Parameters
    ----------
    items : iterable
        Whatever `read` understands.
    read : callable
        Turns an item into a uint8 array (resolution, resolution, 3), or raises Unreadable. The reading processes need
        a function of a module, or an object of a class of one; where `read` or the items are the script's own, the
        caller's process reads.
    resolution : int
        Side of the images in pixels.
    batch_size : int
        Images in a batch; the last may have fewer.
    workers : int
        Number of reading processes; with 0 the caller's process reads.

    Yields
    ------
    Batch
        Its pixels are valid until the next batch is asked for.

    Raises
    ------
    ClipError
        Where a reading process is killed, or shared memory is full.
    Exception
        Whatever `read` raises, except Unreadable.
    """
    items = iter(items)
    first = list(islice(items, batch_size))
    items = chain(first, items)
    if workers and _can_be_sent(read, first):
        yield from _read_ahead(items, read, resolution, batch_size, workers)
        return
    while chosen := list(islice(items, batch_size)):
        pixels = np.empty((len(chosen), resolution, resolution, 3), np.uint8)
        yield Batch(pixels, _fill(pixels, chosen, read))


def _can_be_sent(*values) -> bool:
    """Return whether processes that know nothing of the caller's script can work with these values."""
    if current_process().daemon:  # such a process may not start others
        return False
    try:
        return b"__main__" not in pickle.dumps((pillow.settings(), *values))
    except Exception:  # whatever the caller's objects raise
        return False


def _read_ahead(items: Iterator, read: Callable, resolution: int, batch_size: int, workers: int) -> Iterator[Batch]:
    with closing(ReadAhead(read, resolution, batch_size, workers)) as ahead:
        try:
            for _ in range(N_AHEAD):
                ahead.start(list(islice(items, batch_size)))
            while ahead.started:
                yield ahead.finish()
                ahead.start(list(islice(items, batch_size)))
        except BrokenProcessPool:
            raise ClipError(
                "a process that reads images was killed (out of memory?); run the same command again, with a smaller "
                "--batch-size"
            ) from None


class ReadAhead:
    """Processes that read one batch while the caller computes on another.

    Parameters
    ----------
    read, resolution, batch_size, workers : as of `batches`

    Attributes
    ----------
    started : deque
        A (half of the memory, number of images, parts) for each batch that was started and not finished.

    Raises
    ------
    ClipError
        Where shared memory is full.
    """

    def __init__(self, read: Callable, resolution: int, batch_size: int, workers: int):
        shape = (N_AHEAD, batch_size, resolution, resolution, 3)
        self._memory = _shared_memory(shape)
        self._halves, self._free = np.ndarray(shape, np.uint8, self._memory.buf), 0
        self._share = -(-batch_size // workers)  # images that a process reads at a time
        self.started: deque = deque()
        arguments = (self._memory.name, shape, read, pillow.settings())
        try:
            self._pool = ProcessPoolExecutor(workers, _Context(), _start_with, arguments)
        except BaseException:
            self._memory.unlink()
            raise

    def start(self, items: list) -> None:
        """Start reading a batch, if `items` is not empty; no more than N_AHEAD may be started and not finished."""
        if not items:
            return
        half, self._free = self._free, (self._free + 1) % N_AHEAD
        starts = range(0, len(items), self._share)
        parts = [(i, self._pool.submit(_read, half, i, items[i : i + self._share])) for i in starts]
        self.started.append((half, len(items), parts))

    def finish(self) -> Batch:
        """Wait for the batch that was started first; its pixels are valid until N_AHEAD more have been started.

        Raises
        ------
        BrokenProcessPool
            Where a process was killed.
        """
        half, count, parts = self.started.popleft()
        failures = {start + index: cause for start, part in parts for index, cause in part.result().items()}
        return Batch(self._halves[half, :count], failures)

    def close(self) -> None:
        """End the processes and free the memory."""
        try:
            self._pool.shutdown(wait=True, cancel_futures=True)
        finally:
            self._memory.unlink()


def _shared_memory(shape: tuple[int, ...]) -> SharedMemory:
    """Allocate shared memory now: where a container only promises it, a reading process would be killed later."""
    memory, size = None, math.prod(shape)
    try:
        memory = SharedMemory(create=True, size=size)
        if hasattr(os, "posix_fallocate") and hasattr(memory, "_fd"):  # not on Windows
            os.posix_fallocate(memory._fd, 0, size)
        return memory
    except (OSError, OverflowError) as error:
        if memory:
            memory.close()
            memory.unlink()
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EINVAL):
            raise
        raise ClipError(
            f"two batches of {shape[1]} photographs ({size / 2**20:.0f} MB) do not fit into shared memory (/dev/shm); "
            "choose a smaller --batch-size"
        ) from None


def _fill(pixels: np.ndarray, items: list, read: Callable) -> dict[int, str]:
    """Read each item into its array of `pixels`; return the index and the cause of each that cannot be read."""
    failures = {}
    for index, item in enumerate(items):
        try:
            pixels[index] = read(item)
        except Unreadable as error:
            pixels[index] = 0
            failures[index] = str(error)
    return failures


class _Process(context.SpawnProcess):
    """A process that does not run the caller's script, whose place multiprocessing learns from sys.modules."""

    _lock = threading.Lock()

    @staticmethod
    def _Popen(process):
        with _Process._lock:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                return context.SpawnProcess._Popen(process)
            finally:
                sys.modules["__main__"] = script


class _Context(context.SpawnContext):
    Process = _Process


# ---- in a reading process ----


def _start_with(name: str, shape: tuple, read: Callable, settings: pillow.Settings) -> None:
    pillow.apply(settings)
    _start(name, shape, read)


def _start(name: str, shape: tuple, read: Callable) -> None:
    global _memory, _halves, _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):  # not on Windows
        os.nice(NICENESS)
    _memory = SharedMemory(name)
    _halves, _reader = np.ndarray(shape, np.uint8, _memory.buf), read


def _end_with_parent() -> None:
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _read(half: int, start: int, items: list) -> dict[int, str]:
    return _fill(_halves[half, start : start + len(items)], items, _reader)
