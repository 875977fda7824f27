"""What a job tells MLflow, from the driver alone. Whatever goes wrong here is a warning: tracking never fails a run."""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec

from flashray import storage
from flashray.tracking.client import brief, default_uri, load_mlflow, lost_with_the_job
from flashray.tracking.sender import Sender
from flashray.tracking.spool import Spool
from flashray.tracking.tracking_config import TrackingConfig

log = logging.getLogger(__name__)
P = ParamSpec("P")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between two attempts to send


def _harmless(function: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    @functools.wraps(function)
    def guarded(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(self, *args, **kwargs)
        except Exception as error:
            log.warning("tracking: %s failed: %s", function.__name__, brief(error))

    return guarded


class Tracker:
    """One MLflow run. Every method may be called whether or not tracking works, and none waits for MLflow but `settle`.

    What is told is kept in the run directory first (`Spool`); a thread brings it to MLflow and tries again while that
    does not answer. What did not arrive by the end of the job is sent by the next start or by jobs/replay_tracking.py.

    Args:
        config: what and where.
        output: the run directory's URI.
    """

    def __init__(self, config: TrackingConfig, output: str) -> None:
        self._config, self._output = config, output
        self._spool: Spool | None = None
        self._sender: Sender | None = None
        self._patience = config.patience
        self._told, self._stop, self._idle = threading.Event(), threading.Event(), threading.Event()
        self._settling = False

    @property
    def record(self) -> dict[str, Any] | None:
        """What run.json shows (`Sender.record`), as it is now; None where nothing is tracked."""
        return self._sender.record if self._sender is not None else None

    @_harmless
    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], config_yaml: str) -> None:
        """Tell of the run, or that an earlier start's goes on."""
        if not self._config.enabled:
            return
        self._open()
        assert self._spool is not None
        assert self._sender is not None
        first = next(self._spool.of("start"), None)
        own = {
            "id": first["id"] if first else uuid.uuid4().hex,
            "tracking_uri": self._sender.record["tracking_uri"],
            "driver": f"{socket.gethostname()} {os.getpid()}",
        }
        if first is None:
            own |= {"name": name, "experiment": self._config.experiment, "config": config_yaml}
            own |= {"params": {key: str(value) for key, value in params.items()}, "tags": dict(tags)}
        self._tell("start", **own)

    def behind(self) -> bool:
        """Whether MLflow lacks something that earlier starts told, or their end was never told."""
        if not self._config.enabled:
            return False
        try:
            spool = Spool(self._output)
        except (OSError, ValueError) as error:
            log.warning("tracking: %s", brief(error))
            return False
        return bool(spool.pending() or (spool.last and spool.last["kind"] != "end"))

    @_harmless
    def catch_up(self, files: Iterable[str], status: str) -> None:
        """Bring to its end a run whose earlier starts did everything but that; what they told and did is sent."""
        self._open()
        assert self._spool is not None
        if self._spool.last is not None and self._spool.last["kind"] != "end":
            for name in files:
                self.file(name)
            self._tell("end", status=status)
        self.settle()
        self._close()

    @_harmless
    def metrics(self, values: Mapping[str, float | None]) -> None:
        """Log numbers. One that has no value now and had one in an earlier start becomes NaN: MLflow cannot forget."""
        before = {name for event in self._spool.of("metrics") for name in event["values"]} if self._spool else set()
        known = {name: math.nan if value is None else float(value) for name, value in values.items()}
        self._tell("metrics", values={n: v for n, v in known.items() if not math.isnan(v) or n in before})

    def file(self, name: str) -> None:
        """Keep a file of the run directory as an artifact, under the same name."""
        self._tell("file", name=name)

    @_harmless
    def child(self, key: str, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A finished run below this one; one that was told before under the same key is left as it is."""
        if self._spool is None or any(event["key"] == key for event in self._spool.of("child")):
            return
        plain = {which: str(value) for which, value in params.items()}
        self._tell("child", key=key, name=name, params=plain, metrics={n: float(v) for n, v in metrics.items()})

    @contextmanager
    def told_the_end(self) -> Iterator[None]:
        """Mark the run as the block ended: FINISHED, KILLED where it was interrupted, else FAILED."""
        try:
            yield
        except BaseException as error:
            self.end("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise
        self.end("FINISHED")

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED; waits as `settle` does, and says what MLflow does not have yet."""
        self._tell("end", status=status)
        self.settle()
        self._close()

    def settle(self) -> None:
        """Wait until all is sent, or an attempt to send it failed; `config.patience` seconds at most, in all."""
        if self._sender is None or self._stop.is_set():
            return
        began = time.monotonic()
        self._idle.clear()
        self._settling = True
        self._told.set()
        self._idle.wait(self._patience)
        self._settling = False
        self._patience = max(0.0, self._patience - (time.monotonic() - began))

    @_harmless
    def _tell(self, kind: str, **told: Any) -> None:
        if self._spool is None:
            return
        try:
            self._spool.append(kind, **told)
        finally:
            self._told.set()

    def _open(self) -> None:
        """Read the spool and begin to send."""
        self._spool = Spool(self._output)
        uri = self._config.tracking_uri or default_uri(self._output)
        if lost_with_the_job(uri):
            log.warning(
                "MLflow's database %s is in the temporary folder of this submitted job, and ends with it: name a "
                "server by --mlflow.tracking_uri or MLFLOW_TRACKING_URI. What it is told stays in %s, and "
                "jobs/replay_tracking.py brings it to a server later",
                *(uri, storage.join(self._output, "tracking")),
            )
        self._sender = Sender(uri, self._spool)
        load_mlflow()
        threading.Thread(target=self._send, args=(self._sender,), name="tracking", daemon=True).start()

    def _send(self, sender: Sender) -> None:
        """What the thread does: send what was told, again where that fails, with growing pauses."""
        pause, failed = _FIRST_PAUSE, False
        while True:
            self._told.wait(pause if failed else None)
            self._told.clear()
            if self._stop.is_set():
                return
            settling = self._settling
            try:
                sender.send(self._stop)
                pause, failed = _FIRST_PAUSE, False
            except Exception as error:
                if not failed:
                    log.warning("tracking: %s (%s); the run goes on", brief(error), sender.record["tracking_uri"])
                pause, failed = min(2 * pause, _LONGEST_PAUSE) if failed else _FIRST_PAUSE, True
            if settling:
                self._idle.set()

    def _close(self) -> None:
        """Send no more, and say what is missing."""
        self._stop.set()
        self._told.set()
        if self._spool is not None and self._spool.pending():
            log.warning(
                "tracking: %d of what was told MLflow is not there yet; %s/tracking keeps it, and the next start sends "
                "it, or python jobs/replay_tracking.py --output %s",
                len(self._spool.pending()),
                self._output,
                self._output,
            )
