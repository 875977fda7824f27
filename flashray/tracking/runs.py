"""Runs as MLflow has them."""

from __future__ import annotations

from typing import Any

from flashray import storage
from flashray.errors import ConfigError
from flashray.tracking.client import brief, connect, load_mlflow


def find_runs(uri: str, experiment: str, chosen: str = "", limit: int = 50) -> list[Any]:
    """The newest runs of an experiment (MLflow's entities).

    ConfigError when there is no such experiment, the filter is wrong, or MLflow does not answer.

    Args:
        chosen: a filter in MLflow's words, such as "metrics.psnr > 25 and params.`solver.steps` = '1000'".
    """
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
