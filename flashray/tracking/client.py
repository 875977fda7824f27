"""Where MLflow is, and a client of it whose waits are bounded."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from flashray import storage
from flashray.errors import ConfigError
from flashray.storage.working_folder import in_submitted_job

TIMEOUT = 10  # seconds without a byte from the server after which a call has failed; MLFLOW_HTTP_REQUEST_TIMEOUT


def default_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, else a database beside the output (in the working folder when that is an object store).

    Beside, not inside: runs with neighbouring outputs share a database, and so can be compared.
    """
    folder = Path(storage.normalise(output)).parent if storage.is_local(output) else Path.cwd()
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def lost_with_the_job(uri: str) -> bool:
    """Whether a database lies in the temporary working folder of a submitted job."""
    return in_submitted_job() and uri.startswith(f"sqlite:///{Path.cwd().absolute()}/")


def uri_again(shown: str, given: str | None = None) -> str:
    """The URI to reach again a place that was noted without its password.

    Args:
        shown: the place as it was noted.
        given: the user's word on where to go instead.

    Raises:
        ConfigError: when the password is nowhere to be found.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    if given or environment is None or storage.redact(environment) != shown:
        uri = given or shown
        if "***" in uri:
            raise ConfigError(f"tracking_uri {uri}: its password is not kept; give the address by MLFLOW_TRACKING_URI")
        return uri
    return environment


def load_mlflow() -> None:
    """Import MLflow with bounded waits, which it reads from the environment; its own defaults block for minutes.

    Not in a thread: two threads that import much at once may get in each other's way.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # whoever calls tries again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of every run, children too
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: F401

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def connect(uri: str) -> Any:
    """A client; nothing is asked of the server yet.

    Raises:
        ConfigError: when a part of the password would be taken for the host's name or the path, which error messages
            show.
    """
    from mlflow import MlflowClient

    rest = uri.partition("://")[2]
    authority = re.split("[/?#]", rest)[0]
    if (":" in authority and "@" in rest[len(authority) :]) or (not is_server(uri) and authority.count("@") > 1):
        raise ConfigError(
            f"tracking_uri {storage.redact(uri)}: the password holds '/', '?', '#' or '@'; write %2F, %3F, %23, %40"
        )
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: Any, name: str, uri: str) -> str:
    """The experiment of this name, made where there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=_artifacts(uri)))
    except MlflowException as error:
        # made in between: by another run, or by an earlier call of ours that a slow server has come to only now
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)


def page(uri: str) -> str:
    """The address of the pages of a server; of an embedded database, what `mlflow ui` shows it at."""
    return str(storage.redact(uri)).rstrip("/") if is_server(uri) else "http://127.0.0.1:5000"


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def brief(error: BaseException) -> str:
    """The first line of an error, without secrets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return str(storage.redact(lines[0]))


def _artifacts(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside an embedded database, else where the server says."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()
