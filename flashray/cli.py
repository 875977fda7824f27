"""The command `flashray`: verbs, exit codes, and what every verb does around its work."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from flashray.build import nearest
from flashray.errors import ConfigError, FlashrayError
from flashray.help_texts import HELP, OVERVIEW
from flashray.shown import shown

_TERMINATED = 128 + signal.SIGTERM
GRACE = 9.0  # seconds from SIGTERM until the process ends in any case
_watchers: list[threading.Event] = []  # set by SIGTERM
VERBS = ("restore", "plan", "verify", "train", "register", "compare", "replay", "report")  # functions of flashray.verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Exit codes: 0 done; 1 failed images remain, or the work stopped; 2 bad arguments or configuration."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know σ̂
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"flashray {version('flashray')}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        known = f"{nearest(verb, VERBS)}; verbs: {', '.join(VERBS)}"
        print(f"error: {verb!r} is not a verb of flashray{known}", file=sys.stderr)
        return 2
    if "-h" in rest or "--help" in rest:
        print(HELP[verb])
        return 0
    return exit_code(lambda: getattr(import_module("flashray.verbs"), verb)(rest))  # imported when it is used


def command(argv: Sequence[str] | None = None) -> NoReturn:
    """`main` as a process of its own, which ends within GRACE seconds of SIGTERM: a read of a share that does not
    answer would hold its threads for ever.
    """
    terminated = threading.Event()
    threading.Thread(target=_end_in_any_case, args=(terminated,), daemon=True).start()
    _watchers.append(terminated)
    sys.exit(main(argv))


def _end_in_any_case(terminated: threading.Event) -> None:
    terminated.wait()
    time.sleep(GRACE)
    print(
        "terminated; something did not end in time, and the same command goes on from here", file=sys.stderr, flush=True
    )
    os._exit(_TERMINATED)


def exit_code(work: Callable[[], int | None]) -> int:
    """The exit code of `work`: what it returns (None: 0), 2 on a bad configuration, 1 on another failure.

    The failure is printed to standard error. SIGINT and SIGTERM end the work as an error does, with the codes that
    shells use: 130 and 143.
    """
    try:
        with _ended_by_sigterm():
            return work() or 0
    except ConfigError as error:
        print(f"error: {_plain(error)}", file=sys.stderr)
        return 2
    except (FlashrayError, OSError) as error:  # such as a full disk or a store that does not answer
        print(f"error: {_plain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as error:
        if error.code not in (_TERMINATED, signal.SIGTERM):  # Ray's own handler exits with the second
            raise
        print("terminated; the same command goes on from here", file=sys.stderr)
        return _TERMINATED


def _plain(text: object) -> str:
    """On one line, and without the secrets of addresses."""
    from flashray.storage import redact  # slow to import

    return shown(redact(str(text)))


class OneLine(logging.Formatter):
    """A message names files, and a file's name must not look like another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _plain(record.message)
        return super().formatMessage(record)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Raise SystemExit on the first SIGTERM, as an interrupt raises KeyboardInterrupt; later ones are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for watcher in _watchers:
            watcher.set()
        sys.exit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:  # otherwise the process is ending: leave SIGTERM ignored
            signal.signal(signal.SIGTERM, before)
