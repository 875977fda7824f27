"""What every job does around its work: read the command line, name what went wrong, give an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from flashray.errors import ConfigError, FlashrayError

C = TypeVar("C")


def run(config: type[C], job: Callable[[C], object]) -> int:
    """`job` of the command line's arguments, which are the fields of a dataclass; returns the exit code."""
    from jsonargparse import auto_cli

    def work() -> None:
        job(auto_cli(config, as_positional=False))

    return exit_code(work)


def exit_code(work: Callable[[], int | None]) -> int:
    """What `work` returns (None: 0); 2 on a bad configuration, 1 on another failure, each named on standard error."""
    try:
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
