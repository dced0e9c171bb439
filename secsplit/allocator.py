"""Let glibc keep large blocks for another use, instead of returning each to the kernel and being given it anew.

A training step frees its activations and asks for as many again; by default glibc returns them and maps them anew, and
every page then faults. Nothing that is computed changes; the process holds on to the most it ever needed.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST = 1 << 30  # bytes: blocks below are never mapped by themselves
PAD = 64 << 20  # bytes asked of the kernel at a time


def keep_large_blocks() -> bool:
    """Call it before the first large tensor; False where the C library is not glibc, and nothing is changed."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return all(
        mallopt(option, value)
        for option, value in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, PAD))
    )
