"""MLflow, from the driver alone. Whatever goes wrong here is a warning: tracking never fails a run."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from flashray import storage
from flashray.config import TrackingConfig

log = logging.getLogger(__name__)
P = ParamSpec("P")
_LONGEST = 500  # characters of a parameter's value
_CHILD = "flashray.key"  # the tag that tells a child from its siblings
_FAILURES = 3  # in a row, and tracking is given up: each may have waited for a server


def _harmless(function: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    @functools.wraps(function)
    def guarded(self: Tracker, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._failures >= _FAILURES:
            return
        try:
            function(self, *args, **kwargs)
            self._failures = 0
        except Exception as error:
            self._failures += 1
            log.warning("tracking: %s failed: %s", function.__name__, storage.redact(str(error).strip().split("\n")[0]))
            if self._failures >= _FAILURES:
                log.warning("tracking is given up after %d failures in a row; the run goes on", _FAILURES)

    return guarded


def default_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, else a database beside the output (in the working folder when that is an object store).

    Beside, not inside: runs with neighbouring outputs share a database, and so can be compared.
    """
    folder = Path(storage.normalise(output)).parent if storage.is_local(output) else Path.cwd()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"


class Tracker:
    """One MLflow run. Every method may be called whether or not tracking works.

    The run is created in a thread while the driver does other things: a new database takes seconds. Whatever needs the
    run waits for it.

    Args:
        config: what and where.
        output: the run directory's URI.
        record: `record` of an earlier start of the same run, which is then continued.
    """

    def __init__(self, config: TrackingConfig, output: str, record: Mapping[str, Any] | None = None) -> None:
        self._config, self._output = config, output
        self._record = dict(record) if record else None
        self._client: Any = None
        self._run_id = ""
        self._starting: threading.Thread | None = None
        self._failures = 0
        self._children: set[str] | None = None

    @property
    def record(self) -> dict[str, Any] | None:
        """What run.json shows: tracking_uri, experiment_id, run_id, url, and `serve` for an embedded database."""
        self._wait()
        return self._record

    @_harmless
    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], config_yaml: str) -> None:
        """Create the run, or take up the earlier start's."""
        if not self._config.enabled:
            return
        # bounded waits, read by MLflow when it is imported; its defaults block for minutes
        for variable, value in (("MAX_RETRIES", "2"), ("TIMEOUT", "10"), ("BACKOFF_FACTOR", "1")):
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{variable}", value)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow  # noqa: F401  (here, since two threads that import much at once may get in each other's way)

        for noisy in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self._starting = threading.Thread(target=self._begin, args=(name, params, tags, config_yaml), daemon=True)
        self._starting.start()

    @_harmless
    def _begin(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], config_yaml: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = self._config.tracking_uri or default_uri(self._output)
        client = MlflowClient(tracking_uri=uri)
        if self._record and self._record["tracking_uri"] == storage.redact(uri) and self._alive(client):
            self._client, self._run_id = client, self._record["run_id"]
            client.update_run(self._run_id, "RUNNING")
            return
        experiment = client.get_experiment_by_name(self._config.experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            experiment_id = client.create_experiment(self._config.experiment, artifact_location=_artifacts(uri))
        run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
        self._client, self._run_id = client, run_id
        served = uri.startswith(("http://", "https://"))
        server = str(storage.redact(uri)).rstrip("/") if served else "http://127.0.0.1:5000"
        self._record = {
            "tracking_uri": storage.redact(uri),
            "experiment_id": experiment_id,
            "run_id": run_id,
            "url": f"{server}/#/experiments/{experiment_id}/runs/{run_id}",
        }
        if not served:
            self._record["serve"] = f"mlflow ui --backend-store-uri {storage.redact(uri)}"
        client.log_batch(run_id, params=[Param(key, str(value)[:_LONGEST]) for key, value in params.items()])
        client.log_text(run_id, config_yaml, "config.yaml")

    def _wait(self) -> None:
        if self._starting is not None and self._starting is not threading.current_thread():
            self._starting.join()

    @_harmless
    def metrics(self, values: Mapping[str, float]) -> None:
        """Log numbers."""
        self._wait()
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(name, float(value), now, 0) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=found)

    @_harmless
    def values(self, values: Mapping[str, Any], name: str) -> None:
        """Keep a JSON artifact."""
        self._wait()
        if self._client is not None:
            self._client.log_dict(self._run_id, dict(values), name)

    @_harmless
    def picture(self, image: Any, name: str) -> None:
        """Keep a picture (PIL) as an artifact."""
        self._wait()
        if self._client is not None:
            self._client.log_image(self._run_id, image, name)

    @_harmless
    def child(self, key: str, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A finished run below this one; one that an earlier start made under the same key is left as it is."""
        self._wait()
        if self._client is None:
            return
        from mlflow.entities import Metric, Param

        if self._children is None:
            self._children = self._keys_of_children()
        if key in self._children:
            return
        now = int(time.time() * 1000)
        tags = {"mlflow.parentRunId": self._run_id, _CHILD: key}
        run_id = self._client.create_run(self._experiment_id(), run_name=name, tags=tags).info.run_id
        self._client.log_batch(
            run_id,
            metrics=[Metric(which, float(value), now, 0) for which, value in metrics.items()],
            params=[Param(which, str(value)[:_LONGEST]) for which, value in params.items()],
        )
        self._client.set_terminated(run_id, "FINISHED")
        self._children.add(key)

    @_harmless
    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._wait()
        if self._client is not None:
            self._client.set_terminated(self._run_id, status)

    @contextmanager
    def told_the_end(self) -> Iterator[None]:
        """Mark the run as the block ended: FINISHED, KILLED where it was interrupted, else FAILED."""
        try:
            yield
        except BaseException as error:
            self.end("KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED")
            raise
        self.end("FINISHED")

    def _experiment_id(self) -> str:
        assert self._record is not None
        return str(self._record["experiment_id"])

    def _keys_of_children(self) -> set[str]:
        """The keys of the finished children: one that was cut short is made again."""
        chosen = f"tags.`mlflow.parentRunId` = '{self._run_id}' and attributes.status = 'FINISHED'"
        found, token = set[str](), None
        while True:
            page = self._client.search_runs([self._experiment_id()], chosen, max_results=1000, page_token=token)
            found |= {run.data.tags.get(_CHILD, "") for run in page}
            token = page.token
            if not token:
                return found

    def _alive(self, client: Any) -> bool:
        """Whether the earlier start's run is still there."""
        from mlflow.exceptions import MlflowException

        assert self._record is not None
        try:
            return client.get_run(self._record["run_id"]).info.lifecycle_stage == "active"
        except MlflowException:
            return False


def _artifacts(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside an embedded database, else where the server says."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
