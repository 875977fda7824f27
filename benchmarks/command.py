"""What the laboratory's commands share: options as flashray's, help, and exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from flashray.cli import exit_code
from flashray.option_parser import make_parser, parse_as

T = TypeVar("T")


def run_command(
    config: type[T],
    work: Callable[[T], int | None],
    prog: str,
    argv: Sequence[str] | None = None,
    positionals: Sequence[str] = (),
    rest: str | None = None,
) -> int:
    """Parse a command line as `config` and do the work.

    Args:
        positionals: fields that may stand without a name, in their order.
        rest: a list field that takes all further arguments.

    Returns:
        0 done, 1 failed or stopped, 2 bad arguments or configuration.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    given = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help", "--help-all"} & set(given):
        make_parser(f"python -m {prog}", {"": config}, (config.__doc__ or "").splitlines()[0]).print_help()
        return 0
    return exit_code(lambda: work(parse_as(config, f"python -m {prog}", given, positionals, rest)))
