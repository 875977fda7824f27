"""Sends the events of a run to MLflow. Sending again what is there already changes nothing.

A run is found by the id of its first event (a tag), metrics carry the time of their event, artifacts have fixed names:
a call whose answer was lost can be made again.
"""

from __future__ import annotations

import logging
import posixpath
import tempfile
import threading
from pathlib import Path
from typing import Any

from flashray import storage
from flashray.tracking.client import brief, connect, experiment_id, is_server, page
from flashray.tracking.spool import Event, Sent, Spool

log = logging.getLogger(__name__)
_ID = "flashray.run"  # the tag by which a run is found
_KEY = "flashray.key"  # the tag that tells a child from its siblings
_PARENT = "mlflow.parentRunId"
_MAX_VALUE = 500  # characters of a parameter's value
_MAX_RUNS = 50_000  # runs that a server gives in one answer
_ARTIFACTS = ("file", "text")
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


class Sender:
    """Sends the events of a spool to one MLflow server or database, in their order."""

    def __init__(self, uri: str, spool: Spool) -> None:
        self.uri, self._spool = uri, spool
        self._client: Any = None
        if spool.sent is not None and spool.sent.tracking_uri != storage.redact(uri):
            spool.sent = None  # another server gets all of it

    @property
    def record(self) -> dict[str, Any]:
        """What run.json shows: tracking_uri, experiment_id, run_id, url, and `serve` for an embedded database.

        `pending` instead where MLflow does not have the run yet.
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
        """Send what is pending, until `stop` is set; what MLflow raised is raised, and what was not sent stays pending.

        An artifact that fails stays pending, and the rest is sent: its store may be another machine. What MLflow
        refuses for good is dropped with a warning.
        """
        failure: Exception | None = None
        try:
            self._connect()
            for number, event in self._spool.pending():
                if stop is not None and stop.is_set():
                    return
                try:
                    getattr(self, f"_send_{event['kind']}")(event)
                except Exception as error:
                    if self._spool.sent is not None and getattr(error, "error_code", None) in _REFUSALS:
                        log.warning("tracking: MLflow refuses %s: %s", event.get("name", event["kind"]), brief(error))
                    elif event["kind"] in _ARTIFACTS:
                        failure = failure or error
                        continue
                    else:
                        raise
                self._spool.mark_sent(number)
        except Exception:
            self._client = None  # the run may be gone, so the next attempt looks for it again
            raise
        if failure is not None:
            raise failure

    def _connect(self) -> None:
        """Connect; the events of a run that was deleted are sent again, to a new one."""
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

    def _send_start(self, event: Event) -> None:
        if self._spool.sent is None:
            experiment = experiment_id(self._client, event["experiment"], self.uri)
            run_id = self._find_or_create(experiment, event, event["tags"], event["id"])
            self._spool.keep_sent(Sent(storage.redact(self.uri), experiment, run_id))
        self._log(self._sent.run_id, event, event["params"], {})

    def _send_resume(self, event: Event) -> None:
        self._client.update_run(self._sent.run_id, "RUNNING")

    def _send_metrics(self, event: Event) -> None:
        self._log(self._sent.run_id, event, {}, event["values"])

    def _send_text(self, event: Event) -> None:
        self._client.log_text(self._sent.run_id, event["text"], event["name"])

    def _send_file(self, event: Event) -> None:
        place, path_there = self._spool.folder, event["name"]
        if path_there.startswith("../"):
            place, path_there = posixpath.dirname(place), path_there.removeprefix("../")
        try:
            data = storage.read_bytes(storage.join(place, path_there))
        except FileNotFoundError:  # a later start deletes it until it is true again, and records it again
            return
        folder, name = posixpath.split(path_there)
        with tempfile.TemporaryDirectory() as local:
            path = Path(local, name)
            path.write_bytes(data)
            self._client.log_artifact(self._sent.run_id, str(path), folder or None)

    def _send_child(self, event: Event) -> None:
        """A finished run below this one; one that was cut short is completed."""
        sent = self._sent
        tags = {_PARENT: sent.run_id, _KEY: event["key"]}
        run_id = self._find_or_create(sent.experiment_id, event, tags, f"{sent.run_id}/{event['key']}")
        self._log(run_id, event, event["params"], event["metrics"])
        self._client.set_terminated(run_id, "FINISHED", event["time"])

    def _send_end(self, event: Event) -> None:
        self._delete_doubles()
        self._client.set_terminated(self._sent.run_id, event["status"], event["time"])

    def _delete_doubles(self) -> None:
        """A server that was frozen may have made a run whose answer nobody waited for, and then another."""
        own = next(self._spool.of("start"))["id"]
        seen = {own: self._sent.run_id}
        for tag, value in ((_ID, own), (_PARENT, self._sent.run_id)):
            for run in self._search(self._sent.experiment_id, tag, value):
                if seen.setdefault(run.data.tags.get(_ID, run.info.run_id), run.info.run_id) != run.info.run_id:
                    self._client.delete_run(run.info.run_id)

    @property
    def _sent(self) -> Sent:
        if self._spool.sent is None:
            raise ValueError(f"{self._spool.folder}/tracking lacks the event of the run's start")
        return self._spool.sent

    def _find_or_create(self, experiment: str, event: Event, tags: dict[str, str], own: str) -> str:
        """The run whose tag has this value."""
        runs = self._search(experiment, _ID, own)
        run = runs[0] if runs else self._client.create_run(experiment, event["time"], {**tags, _ID: own}, event["name"])
        return str(run.info.run_id)

    def _search(self, experiment: str, tag: str, value: str) -> list[Any]:
        """Runs with this tag, the first-made first."""
        order, chosen = ["attributes.start_time", "attributes.run_id"], f"tags.`{tag}` = '{value}'"
        return list(self._client.search_runs([experiment], chosen, max_results=_MAX_RUNS, order_by=order))

    def _log(self, run_id: str, event: Event, params: dict[str, str], metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric, Param

        self._client.log_batch(
            run_id,
            metrics=[Metric(name, value, event["time"], 0) for name, value in metrics.items()],
            params=[Param(name, value[:_MAX_VALUE]) for name, value in params.items()],
        )
