"""Freed memory is used again; predict.py starts sooner by that."""

import sys

import pytest
from conftest import python

FAULTS = """if True:
    import ctypes, resource
    from fewshot import heap
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: with huge pages there is little to count
    if {keep}:
        heap.keep_freed_memory()
    faults = []
    for _ in range(10):  # each takes 10,000 pages of 4 KB
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"a" * (40 << 20)
        del block
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(sum(faults[1:]))"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_a_large_block_that_was_freed_is_used_again():
    returned, kept = (int(python(FAULTS.format(keep=keep)).stdout) for keep in (False, True))
    assert kept < 1000 < returned
