"""Makes `jittor.no_grad` right where several threads use it at once."""

from __future__ import annotations

import threading


def share_between_threads(jt) -> None:
    """Make a `jittor.no_grad` block hold until its end, whatever other threads do; within one thread nothing changes.

    Jittor's block sets a flag of the whole process, and at its end puts back what it found. Of two threads, the first
    to leave would switch gradients on for the other, and the second would then leave them off for ever.
    """
    enter, leave, lock = jt.no_grad.__enter__, jt.no_grad.__exit__, threading.RLock()
    blocks: list[tuple] = []  # (thread, the flag to put back) of each block that is entered, the newest last
    outside = 0  # the flag when there was none

    def __enter__(block):
        nonlocal outside
        with lock:
            thread, flag = threading.get_ident(), jt.flags.no_grad
            outside = outside if blocks else flag
            others_only = blocks and all(thread != other for other, _ in blocks)
            blocks.append((thread, outside if others_only else flag))
            enter(block)  # if it fails, it leaves the block

    def __exit__(block, *error):
        with lock:
            thread = threading.get_ident()
            # a generator's block may be left in another thread
            index = max((i for i, (other, _) in enumerate(blocks) if other == thread), default=len(blocks) - 1)
            _, before = blocks.pop(index)
            leave(block, *error)
            jt.flags.no_grad = 1 if any(other != thread for other, _ in blocks) else before

    jt.no_grad.__enter__, jt.no_grad.__exit__ = __enter__, __exit__
