"""What a worker's C library does with freed memory."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes; the parameter is an int


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, and use them again; does nothing without glibc.

    By default every tensor beyond 32 MB is mapped anew, and the kernel clears its pages each time: half of the time
    that a photo of several megapixels takes on CPUs (docs/results/any-size.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 64 * 2**20)):
        mallopt(name, value)
