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
from itertools import chain, islice
from multiprocessing import connection, context, current_process, parent_process
from multiprocessing.shared_memory import SharedMemory
from typing import Callable, NamedTuple

import numpy as np

from . import pillow
from .errors import ClipError, Unreadable

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
        yield from _read_ahead(items, read, (2, batch_size, resolution, resolution, 3), workers)
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


def _read_ahead(items: Iterator, read: Callable, shape: tuple[int, ...], workers: int) -> Iterator[Batch]:
    memory = _shared_memory(shape)
    try:
        pool = ProcessPoolExecutor(workers, _Context(), _start_with, (memory.name, shape, read, pillow.settings()))
        try:
            yield from _alternate(pool, items, np.ndarray(shape, np.uint8, memory.buf), workers)
        except BrokenProcessPool:
            raise ClipError(
                "a process that reads images was killed (out of memory?); run the same command again, with a smaller "
                "--batch-size"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    finally:
        memory.unlink()


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


def _alternate(pool: ProcessPoolExecutor, items: Iterator, halves: np.ndarray, workers: int) -> Iterator[Batch]:
    """Yield the two halves of the memory in turn: one is filled while the caller computes on the other."""
    batch_size = halves.shape[1]
    share = -(-batch_size // workers)  # images that a process reads at a time
    pending: deque = deque()

    def fill(half: int) -> None:
        chosen = list(islice(items, batch_size))
        if chosen:
            starts = range(0, len(chosen), share)
            parts = [(start, pool.submit(_read, half, start, chosen[start : start + share])) for start in starts]
            pending.append((half, len(chosen), parts))

    fill(0)
    fill(1)
    while pending:
        half, count, parts = pending.popleft()
        failures = {start + index: cause for start, part in parts for index, cause in part.result().items()}
        yield Batch(halves[half, :count], failures)
        fill(half)


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
