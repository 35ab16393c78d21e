"""Shows that the first compilation of Jittor's core goes on: it takes minutes, and Jittor says nothing."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import jittor_cache
from .progress import Progress

INTERVAL = 0.5  # seconds between two looks into the cache
# Files that Jittor 1.3.11 compiles for its core without CUDA, oneDNN's operators included. With CUDA there are more,
# which have not been counted.
N_FILES = 157
_log = logging.getLogger("jclip")


@contextmanager
def shown(nvcc: str, is_compiled: bool) -> Iterator[None]:
    """Log that Jittor compiles its core for `nvcc` while the block imports it, and show how far it is.

    The files that the compilers leave are counted, by a thread, because
    the block may also wait for another process that imports Jittor.
    """
    if is_compiled:
        yield
        return
    minutes = "up to 10" if nvcc else "about 3"  # on 2 cores; CUDA on 16 cores takes 1
    _log.info("Jittor compiles its core on its first use: %s minutes, once.", minutes)
    is_over = threading.Event()
    thread = threading.Thread(target=_count, args=(nvcc, is_over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _count(nvcc: str, is_over: threading.Event) -> None:
    started = time.time()
    total = None if nvcc else N_FILES
    # A quarter of the time passes before the first of these files is compiled, and says nothing about the others.
    for until, leave in ((1, False), (math.inf, True)):
        with Progress(total, "compiling Jittor", " file", leave=leave) as progress:
            while progress.done < until and not is_over.wait(INTERVAL):
                progress.update(min(total or math.inf, jittor_cache.count_objects(started)) - progress.done)
