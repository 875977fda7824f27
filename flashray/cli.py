"""What every job does around its work: read the command line, name what went wrong, give an exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from flashray.errors import ConfigError, FlashrayError

C = TypeVar("C")
_TERMINATED = 128 + signal.SIGTERM


def run(config: type[C], job: Callable[[C], object]) -> int:
    """`job` of the command line's arguments, which are the fields of a dataclass; returns the exit code."""
    from jsonargparse import auto_cli

    def work() -> None:
        job(auto_cli(config, as_positional=False))

    return exit_code(work)


def exit_code(work: Callable[[], int | None]) -> int:
    """What `work` returns (None: 0); 2 on a bad configuration, 1 on another failure, each named on standard error.

    SIGINT and SIGTERM end the work as cleanly as an error does: 130 and 143, as shells have it.
    """
    try:
        with _ended_by_sigterm():
            return work() or 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FlashrayError, OSError) as error:  # a disk that is full, a store that is away: the message names it
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as error:
        if error.code not in (_TERMINATED, signal.SIGTERM):  # the second is what Ray makes of it
            raise
        print("terminated; the same command goes on from here", file=sys.stderr)
        return _TERMINATED


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Raise SystemExit on the first SIGTERM, as an interrupt raises KeyboardInterrupt; the next ones change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:  # else the process is about to end, and ends with its code
            signal.signal(signal.SIGTERM, before)
