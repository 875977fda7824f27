"""From a spool into one MLflow run. Sending again what is there already changes nothing.

A run is found by the name that its first event gave it (a tag), numbers carry the time when they were told, artifacts
have fixed names: a call whose answer was lost can be made again.
"""

from __future__ import annotations

import logging
import posixpath
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashray import storage
from flashray.tracking.client import brief, connect, experiment_id, is_server, page
from flashray.tracking.spool import Event, Sent, Spool

log = logging.getLogger(__name__)
_RUN = "flashray.run"  # the tag that holds a run's own name
_CHILD = "flashray.key"  # … and the one that tells a child from its siblings
_PARENT = "mlflow.parentRunId"
_LONGEST = 500  # characters of a parameter's value
_AT_ONCE = 100  # parameters that a server takes in one call
_MANY = 50_000  # runs that a server gives in one answer
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class Sender:
    """Brings the events of a spool to MLflow, in their order.

    Args:
        uri: server or database.
        spool: what was told.
    """

    def __init__(self, uri: str, spool: Spool) -> None:
        self.uri, self._spool = uri, spool
        self._client: Any = None
        if spool.sent is not None and spool.sent.tracking_uri != storage.redact(uri):
            spool.sent = None  # all of it goes to the other place

    @property
    def record(self) -> dict[str, Any]:
        """What run.json shows: tracking_uri, experiment_id, run_id, url, and `serve` for an embedded database.

        `pending` instead where MLflow does not know of the run yet.
        """
        shown, sent = storage.redact(self.uri), self._spool.sent
        if sent is None:
            return {"tracking_uri": shown, "run_id": None, "url": None, "pending": True}
        record = {
            "tracking_uri": shown,
            "experiment_id": sent.experiment_id,
            "run_id": sent.run_id,
            "url": f"{page(self.uri)}/#/experiments/{sent.experiment_id}/runs/{sent.run_id}",
        }
        return record if is_server(self.uri) else record | {"serve": f"mlflow ui --backend-store-uri {shown}"}

    def send(self, stop: threading.Event | None = None) -> None:
        """Send what is pending, each thing once.

        An artifact that fails is left behind, and the rest goes on: its store may be another machine. What MLflow
        refuses for good is dropped with a warning.

        Raises:
            Exception: whatever MLflow raised; what was not sent stays pending.
        """
        failure: Exception | None = None
        try:
            self._resume()
            for number, event in self._spool.pending():
                if stop is not None and stop.is_set():
                    return
                failure = self._attempt(number, event) or failure
        except Exception:
            self._client = None  # the run may be gone, so it is looked for again
            raise
        if failure is not None:
            raise failure

    def _attempt(self, number: int, event: Event) -> Exception | None:
        """Send one event; the error of an artifact that is left behind."""
        try:
            self._deliver(event)
        except Exception as error:
            sent = self._spool.sent
            if sent is None:
                raise
            if getattr(error, "error_code", None) in _REFUSALS:
                log.warning("tracking: MLflow refuses %s: %s", event.get("name", event["kind"]), brief(error))
            elif event["kind"] == "file":
                self._spool.sent = sent.without(number)
                return error
            else:
                raise
        assert self._spool.sent is not None
        self._spool.sent = self._spool.sent.plus(number)
        return None

    def _resume(self) -> None:
        """Connect; what was sent to a run that is gone is sent again, to a new one."""
        if self._client is not None:
            return
        from mlflow.exceptions import MlflowException

        client, sent = connect(self.uri), self._spool.sent
        if sent is not None:
            try:
                gone = client.get_run(sent.run_id).info.lifecycle_stage != "active"
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                gone = True
            if gone:
                self._spool.sent = None
        self._client = client

    def _deliver(self, event: Event) -> None:
        deliver: Callable[[Event], None] = getattr(self, f"_send_{event['kind']}")
        if self._spool.sent is None and event["kind"] != "start":
            raise ValueError(f"{self._spool.output}/tracking lacks the event of the run's start")
        deliver(event)

    def _send_start(self, event: Event) -> None:
        if self._spool.sent is not None:
            self._client.update_run(self._run_id, "RUNNING")
            if "params" not in event:  # a later start: parameters cannot change
                return
        else:
            experiment = experiment_id(self._client, event["experiment"], self.uri)
            tags = {**event["tags"], _RUN: event["id"]}
            run_id = self._find(experiment, event["id"]) or self._create(experiment, event, tags)
            self._spool.sent = Sent(str(storage.redact(self.uri)), experiment, run_id)
        self._log_params(self._run_id, event["params"])
        self._client.log_text(self._run_id, event["config"], "config.yaml")

    def _send_metrics(self, event: Event) -> None:
        self._log_metrics(self._run_id, event, event["values"])

    def _send_file(self, event: Event) -> None:
        place = storage.join(self._spool.output, event["name"])
        try:
            data = storage.read_bytes(place)
        except FileNotFoundError:  # a later start takes it back until it is true again, and tells it again
            return
        folder, name = posixpath.split(event["name"])
        with tempfile.TemporaryDirectory() as local:
            path = Path(local, name)
            path.write_bytes(data)
            self._client.log_artifact(self._run_id, str(path), folder or None)

    def _send_child(self, event: Event) -> None:
        """A finished run below this one; one that was cut short is completed."""
        assert self._spool.sent is not None
        experiment, own = self._spool.sent.experiment_id, f"{self._run_id}/{event['key']}"
        tags = {_PARENT: self._run_id, _CHILD: event["key"], _RUN: own}
        run_id = self._find(experiment, own) or self._create(experiment, event, tags)
        self._log_metrics(run_id, event, event["metrics"])
        self._log_params(run_id, event["params"])
        self._client.set_terminated(run_id, "FINISHED", event["time"])

    def _send_end(self, event: Event) -> None:
        self._delete_doubles()
        self._client.set_terminated(self._run_id, event["status"], event["time"])

    def _delete_doubles(self) -> None:
        """A server that was frozen may have made a run whose answer nobody waited for, and then another."""
        assert self._spool.sent is not None
        own = next(self._spool.of("start"))["id"]
        seen = {own: self._run_id}
        for chosen in (f"tags.`{_RUN}` = '{own}'", f"tags.`{_PARENT}` = '{self._run_id}'"):
            for run in self._search(self._spool.sent.experiment_id, chosen, _MANY):
                if seen.setdefault(run.data.tags.get(_RUN, run.info.run_id), run.info.run_id) != run.info.run_id:
                    self._client.delete_run(run.info.run_id)

    @property
    def _run_id(self) -> str:
        assert self._spool.sent is not None
        return self._spool.sent.run_id

    def _find(self, experiment: str, own: str) -> str | None:
        """The run of this name."""
        runs = self._search(experiment, f"tags.`{_RUN}` = '{own}'", 1)
        return runs[0].info.run_id if runs else None

    def _search(self, experiment: str, chosen: str, most: int) -> list[Any]:
        """The first-made runs first."""
        order = ["attributes.start_time", "attributes.run_id"]
        return list(self._client.search_runs([experiment], chosen, max_results=most, order_by=order))

    def _create(self, experiment: str, event: Event, tags: dict[str, str]) -> str:
        created = self._client.create_run(experiment, event["time"], tags, run_name=event["name"])
        return str(created.info.run_id)

    def _log_metrics(self, run_id: str, event: Event, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, event["time"], 0) for name, value in values.items()]
        self._client.log_batch(run_id, metrics=metrics)

    def _log_params(self, run_id: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_LONGEST]) for key, value in values.items()]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(run_id, params=params[first : first + _AT_ONCE])
