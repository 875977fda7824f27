"""The memory of this machine, and what this process's C library does with what it freed."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of glibc's malloc.h
_MIB = 2**20
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * _MIB))
# glibc's own values, as its two thresholds have grown in a process that used large tensors
_RETURN = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 64 * _MIB), (_TOP_PAD, _MIB // 8))
# Environment of a worker, which glibc reads when the process starts. Ray runs tasks in a second thread; without this it
# would have a heap of its own, which gives blocks back whatever `keep_freed_memory` says.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
_LIMIT = Path("/sys/fs/cgroup/memory.max")
_lock = threading.Lock()
_holders = 0  # of freed memory: `freed_memory_kept` under way, and `keep_freed_memory`


def machine_memory() -> int:
    """Bytes of memory that this machine has, or that its container may take."""
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(has, int(_LIMIT.read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit
        return has


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, and use them again, for good; does nothing without glibc.

    By default every tensor beyond 32 MB is mapped anew, and the kernel clears its pages each time: half of the time
    that a photo of several megapixels takes on CPUs (docs/results/any-size.md). Threads beside the first one need
    `ONE_ARENA` in the process's environment.
    """
    global _holders
    with _lock:
        _holders += 1
        _call("mallopt", *_KEEP)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """The same for a while; afterwards the process is as it was, and its free memory goes back to the machine."""
    global _holders
    keep_freed_memory()
    try:
        yield
    finally:
        with _lock:
            _holders -= 1
            if not _holders:
                _call("mallopt", *_RETURN)
                give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Give the memory that `keep_freed_memory` kept back to the machine, where other processes want it."""
    _call("malloc_trim", (0,))


def _call(name: str, *arguments: tuple[int, ...]) -> None:
    """A function of glibc for each of these arguments; nothing where the C library is another."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return
    for values in arguments:
        function(*values)
