"""The URI of MLflow, a client whose waits are bounded, and the runs of an experiment."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from flashray import storage
from flashray.errors import ConfigError
from flashray.storage.working_folder import in_submitted_job

TIMEOUT = 10  # seconds without a byte from the server after which a call has failed; MLFLOW_HTTP_REQUEST_TIMEOUT


def default_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, else a database beside the output (in the working folder when that is an object store).

    It lies beside the output, not inside, so that runs with neighbouring outputs share it and can be compared.
    """
    folder = Path(storage.normalise(output)).parent if storage.is_local(output) else Path.cwd()
    return os.environ.get("MLFLOW_TRACKING_URI") or _database(folder.absolute() / "mlflow.db")


def lost_with_the_job(uri: str) -> bool:
    """Whether a database lies in the temporary working folder of a submitted job."""
    return in_submitted_job() and uri.startswith(f"{_database(Path.cwd().absolute())}/")


def _database(path: Path) -> str:
    """The URI of an embedded database; only what would end or change the path is quoted."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def uri_again(shown: str, given: str | None = None) -> str:
    """The URI of a server or database that was recorded (`shown`) without its secrets, or the one given instead.

    MLFLOW_TRACKING_URI may have the secrets; ConfigError when they are not known.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    if given or environment is None or storage.redact(environment) != shown:
        uri = given or shown
        if "***" in uri:
            raise ConfigError(f"tracking_uri {uri}: its password is not kept; give the address by MLFLOW_TRACKING_URI")
        return uri
    return environment


def load_mlflow() -> None:
    """Import MLflow with bounded waits, which it reads from the environment; MLflow's own defaults block for minutes.

    Call it from the main thread: two threads that import many modules at once may deadlock.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the callers try again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would print one for every child
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: F401

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def connect(uri: str) -> Any:
    """A client; the server is not asked anything yet.

    ConfigError when a part of the password would be read as the host or the path, which error messages show.
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
    """The id of the experiment of this name, which is created where there is none."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=_artifacts(uri)))
    except MlflowException as error:
        # created in between: by another run, or by an earlier call of ours that a slow server handled only now
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)


def find_runs(uri: str, experiment: str, chosen: str = "", limit: int = 50) -> list[Any]:
    """The newest runs of an experiment (MLflow's entities) that pass a filter in MLflow's words.

    ConfigError when there is no such experiment or database, the filter is wrong, or MLflow does not answer.
    """
    file = _file(uri)
    if file is not None and not file.exists():  # MLflow would create it
        raise ConfigError(f"{storage.redact(uri)}: there is no such file, so nothing is tracked; give --tracking-uri")
    load_mlflow()
    client = connect(uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = ", ".join(sorted(one.name for one in client.search_experiments()))
            raise ConfigError(f"experiment {experiment}: not at {storage.redact(uri)}; there are {known}")
        return list(client.search_runs([found.experiment_id], chosen, max_results=limit))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"MLflow at {storage.redact(uri)}: {brief(error)}") from error


def page(uri: str) -> str:
    """The address of a server's web pages; for an embedded database, the address that `mlflow ui` serves."""
    return storage.redact(uri).rstrip("/") if is_server(uri) else "http://127.0.0.1:5000"


def is_server(uri: str) -> bool:
    """Whether it is an MLflow server, not a database."""
    return uri.startswith(("http://", "https://"))


def brief(error: BaseException) -> str:
    """The first line of an error, without secrets; of a database that a full disk broke also what helps."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    broken = "sqlite3" in lines[0] and re.search("_alembic_tmp|malformed|not a database", lines[0])
    hint = "; the database file is damaged: move it away, and flashray replay OUT fills a new one" if broken else ""
    return storage.redact(lines[0]) + hint


def _artifacts(uri: str) -> str | None:
    """The artifact location of a new experiment: beside an embedded database, else the server's choice."""
    file = _file(uri)
    return None if file is None else (file.absolute().parent / "mlartifacts").as_uri()


def _file(uri: str) -> Path | None:
    """The file of an embedded database."""
    is_file = uri.startswith("sqlite:///")
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])) if is_file else None
