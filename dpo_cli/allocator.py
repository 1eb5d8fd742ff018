"""What libraries in C do with memory on a CPU, told so before they start.

glibc gives large blocks back to the kernel as soon as they are freed, and takes them anew, page by page, for the next
activation of the same size: a fifth of a training step on a CPU. Kept, they are used again.

oneDNN, which multiplies bfloat16 matrices, keeps what it made for each shape, 1024 shapes in each of two caches. Here
nearly every micro-batch has a length of its own, so little is found again, and half a gigabyte is held for it.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 256 * 2**20

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Of oneDNN, and of the layer between it and torch."""
_SHAPES = "64"
"""A micro-batch's own are some 25."""


def keep_freed_memory() -> bool:
    """To be called before torch allocates; returns whether the C library could be told."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library (musl)
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD))
    taken = [mallopt(option, value) for option, value in settings]
    return all(taken)


def bound_kernel_caches() -> None:
    """To be called before torch multiplies; what the environment says already stays."""
    for name in _CACHES:
        os.environ.setdefault(name, _SHAPES)
