"""Images read ahead of the model, in processes of their own: Jittor holds Python's lock while it computes, so threads
wait.

The pixels go through shared memory, two batches of it: what is read ahead never grows, and what passes between the
processes is so little that no process waits for the lock of another.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from multiprocessing.shared_memory import SharedMemory
from typing import Callable

import numpy as np

from .errors import ClipError, Unreadable

NICENESS = 19  # of the readers: what they take from the computing threads delays all of those


def batches(
    items: Iterable,
    read: Callable,
    resolution: int,
    batch_size: int,
    workers: int,
    unreadable: dict[int, str] | None = None,
) -> Iterator[np.ndarray]:
    """read(item) of each item in order, uint8 (up to batch_size, resolution, resolution, 3).

    Parameters
    ----------
    read : turns an item into a uint8 array (resolution, resolution, 3). It is sent to the processes, so it must be a
        function of a module, or an object of a class of one. What it raises is raised here.
    workers : how many processes; with 0 all is read here, in between
    unreadable : where it is given, an item whose reading raises Unreadable is black, and its place in `items` and the
        cause are put here before its batch is yielded; nothing is raised then

    A batch is valid until the next one is asked for. Raises ClipError where a process is killed.
    """
    items, done = iter(items), 0
    if not workers:
        while chosen := list(islice(items, batch_size)):
            batch = np.empty((len(chosen), resolution, resolution, 3), np.uint8)
            _note(_fill(batch, chosen, read), done, unreadable)
            done += len(chosen)
            yield batch
        return
    shape = (2, batch_size, resolution, resolution, 3)
    memory = _shared(shape)
    try:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (memory.name, shape, read))
        try:
            yield from _in_turn(pool, items, np.ndarray(shape, np.uint8, memory.buf), workers, unreadable)
        except BrokenProcessPool:
            raise ClipError(
                "a process that reads images was killed (out of memory?); run the same command again, with a smaller "
                "--batch-size"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    finally:
        memory.unlink()


def _shared(shape: tuple[int, ...]) -> SharedMemory:
    """Shared memory of so many bytes, all of them there: where it is promised only, as in a container, writing would
    kill a reader."""
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


def _in_turn(
    pool: ProcessPoolExecutor, items: Iterator, halves: np.ndarray, workers: int, unreadable: dict | None
) -> Iterator[np.ndarray]:
    """The two halves of the memory by turns: one is filled while the other is computed on."""
    batch_size = halves.shape[1]
    share = -(-batch_size // workers)
    filling: deque = deque()

    def fill(half: int) -> None:
        chosen = list(islice(items, batch_size))
        if chosen:
            parts = [
                (start, pool.submit(_read, half, start, chosen[start : start + share]))
                for start in range(0, len(chosen), share)
            ]
            filling.append((half, len(chosen), parts))

    fill(0)
    fill(1)
    done = 0
    while filling:
        half, count, parts = filling.popleft()
        for start, part in parts:
            _note(part.result(), done + start, unreadable)
        done += count
        yield halves[half, :count]
        fill(half)


def _fill(rows: np.ndarray, items: list, read: Callable) -> list[tuple[int, Unreadable]]:
    """Read each item into its row; the places of those that cannot be read, and why."""
    failures = []
    for i, item in enumerate(items):
        try:
            rows[i] = read(item)
        except Unreadable as error:
            rows[i] = 0
            failures.append((i, error))
    return failures


def _note(failures: list[tuple[int, Unreadable]], start: int, unreadable: dict | None) -> None:
    for i, error in failures:
        if unreadable is None:
            raise error
        unreadable[start + i] = str(error)


# ---- in a reading process ----


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


def _read(half: int, start: int, items: list) -> list[tuple[int, Unreadable]]:
    return _fill(_halves[half, start : start + len(items)], items, _reader)
