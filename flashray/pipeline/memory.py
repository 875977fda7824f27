"""The memory of this machine, and what a worker's C library does with what it freed."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes; the parameter is an int
# Environment of a worker, which glibc reads when the process starts. Ray runs tasks in a second thread; without this it
# would have a heap of its own, which gives blocks back whatever `keep_freed_memory` says.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """Bytes of memory that this machine has, or that its container may take."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(has, int(_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit
        return has


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, and use them again; does nothing without glibc.

    By default every tensor beyond 32 MB is mapped anew, and the kernel clears its pages each time: half of the time
    that a photo of several megapixels takes on CPUs (docs/results/any-size.md). Threads beside the first one need
    `ONE_ARENA` in the process's environment.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 64 * 2**20)):
        mallopt(name, value)


def give_back_freed_memory() -> None:
    """Give the memory that `keep_freed_memory` kept back to the machine, where other processes want it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
