"""Memory that was freed is used again, in place of the system's: for programs that load a model and end soon.

The system hands out memory in pages of 4 KB, which takes a tenth of a second for 150 MB. The C library returns large
blocks as soon as they are freed, so that the 350 MB of weights that ViT-B/32 becomes do not lie where its file was.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt, and bytes: blocks that are taken from the heap, and how much of it may lie unused at its end.
# https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, TRIM = -1, 512 << 20
M_MMAP_THRESHOLD, LARGEST = -3, 128 << 20


def keep_freed_memory() -> None:
    """Let the C library keep what is freed until the process ends; does nothing where it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, TRIM)
