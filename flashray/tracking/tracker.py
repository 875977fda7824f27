"""What a job reports to MLflow, from the driver alone. Whatever goes wrong here is a warning and never fails a run."""

from __future__ import annotations

import functools
import logging
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec

from flashray import storage
from flashray.tracking.client import brief, default_uri, load_mlflow, lost_with_the_job
from flashray.tracking.sender import Sender
from flashray.tracking.sending_thread import SendingThread
from flashray.tracking.spool import Spool
from flashray.tracking.tracking_config import TrackingConfig

log = logging.getLogger(__name__)
P = ParamSpec("P")


def _harmless(function: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    @functools.wraps(function)
    def guarded(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(self, *args, **kwargs)
        except Exception as error:
            log.warning("tracking: %s failed: %s", function.__name__, brief(error))

    return guarded


class Tracker:
    """One MLflow run. Every method may be called whether or not tracking works; only `settle` waits for MLflow.

    A call is kept as an event in the run's folder first (`Spool`); a thread sends it and tries again while MLflow does
    not answer. What MLflow lacks at the end of the job is sent by the next start or by `flashray replay`. `output` is
    the URI of the job's output, beside which by default the database lies; `folder` is the URI of the run's folder,
    which holds run.json, by default the output.
    """

    def __init__(self, config: TrackingConfig, output: str, folder: str | None = None) -> None:
        self._config, self._output, self._folder = config, output, folder or output
        self._uri = config.tracking_uri or default_uri(output)
        self._spool: Spool | None = None
        self._sender: Sender | None = None
        self._thread: SendingThread | None = None

    @property
    def record(self) -> dict[str, Any] | None:
        """What run.json shows (`Sender.record`), as it is now; None where nothing is tracked."""
        return self._sender.record if self._sender is not None else None

    @_harmless
    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], config_yaml: str) -> None:
        """The run begins, or continues an earlier start's, whose parameters and tags stay."""
        if not self._config.enabled:
            return
        self._open()
        assert self._spool is not None
        uri = {"tracking_uri": storage.redact(self._uri)}
        if self._spool.status:
            self._append("resume", **uri)
            return
        names = {"name": storage.redact(name), "experiment": self._config.experiment}
        self._append("start", id=uuid.uuid4().hex, params=_texts(params), tags=_texts(tags), **names, **uri)
        self._append("text", name="config.yaml", text=storage.redact(config_yaml))

    @_harmless
    def metrics(self, values: Mapping[str, float | None]) -> None:
        """Log numbers. One that has no value now and had one in an earlier start becomes NaN: MLflow cannot forget."""
        before = {name for event in self._spool.of("metrics") for name in event["values"]} if self._spool else set()
        known = {name: math.nan if value is None else float(value) for name, value in values.items()}
        self._append("metrics", values={n: v for n, v in known.items() if not math.isnan(v) or n in before})

    @_harmless
    def file(self, name: str) -> None:
        """Keep a file of the run's folder, or with `../` one beside it, as an artifact under the same name."""
        self._append("file", name=name)

    @_harmless
    def child(self, key: str, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A finished run below this one; one that was given before under the same key stays as it is."""
        if self._spool is not None and not any(event["key"] == key for event in self._spool.of("child")):
            numbers = {which: float(value) for which, value in metrics.items()}
            self._append("child", key=key, name=storage.redact(name), params=_texts(params), metrics=numbers)

    @contextmanager
    def told_the_end(self) -> Iterator[None]:
        """Mark the run as the block ended: FINISHED, KILLED where it was interrupted, else FAILED."""
        try:
            yield
        except BaseException as error:
            self.end("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise
        self.end("FINISHED")

    @_harmless
    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED; waits as `settle` does, and warns where MLflow does not have all."""
        try:
            self._append("end", status=status)
        finally:
            self._close()

    def behind(self) -> bool:
        """Whether MLflow lacks something of a run whose earlier starts did all the work."""
        try:
            spool = Spool(self._folder) if self._config.enabled else None
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("tracking: %s", brief(error))
            return False
        return spool is not None and bool(spool.pending() or spool.status not in ("", "FINISHED"))

    @_harmless
    def catch_up(self, files: Iterable[str], status: str) -> None:
        """Send to MLflow what it lacks of a run whose earlier starts did all the work."""
        self._open()
        assert self._spool is not None
        if self._spool.status != status:
            for name in files:
                self._append("file", name=name)
            self._append("end", status=status)
        self._close()

    def settle(self) -> None:
        """Wait until MLflow has all, or an attempt failed; `config.patience` seconds at most, in all."""
        if self._thread is not None:
            self._thread.wait()

    def _open(self) -> None:
        """Read what earlier starts recorded, and start the thread."""
        self._spool = Spool(self._folder)
        if lost_with_the_job(self._uri):
            log.warning(
                "MLflow's database %s is in the temporary folder of this submitted job, and ends with it: name a "
                "server by --tracking-uri or MLFLOW_TRACKING_URI. %s/tracking keeps the run, and "
                "flashray replay sends it to a server later",
                *(self._uri, self._folder),
            )
        self._sender = Sender(self._uri, self._spool)
        load_mlflow()
        self._thread = SendingThread(self._sender, self._config.patience)

    def _append(self, kind: str, **values: Any) -> None:
        """Keep an event and ask for it to be sent; the latter even where the folder cannot be written to."""
        if self._spool is None or self._thread is None:
            return
        try:
            self._spool.append(kind, **values)
        finally:
            self._thread.request()

    def _close(self) -> None:
        """Wait for MLflow, end the thread, and warn where MLflow does not have all."""
        if self._spool is None or self._thread is None:
            return
        self._thread.wait()
        self._thread.stop()
        pending = len(self._spool.pending())
        if pending:
            log.warning(
                "tracking: %d events are not in MLflow yet. %s/tracking keeps them; the next start of the same command "
                "sends them, or flashray replay %s",
                *(pending, self._folder, self._output),
            )


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """As texts without secrets."""
    return {name: storage.redact(str(value)) for name, value in values.items()}
