"""Compare runs, as a Markdown table: python jobs/compare.py --outputs '[RUN, RUN]', or of MLflow: --experiment NAME.

python jobs/compare.py --experiment flashray --filter "metrics.psnr > 25" --sort lpips --ascending true
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from flashray.cli import run
from flashray.errors import ConfigError
from flashray.report.compare_runs import SHOWN, Row, by_metric, compare, row_of_output
from flashray.tracking import default_uri
from flashray.tracking.runs import find_runs


@dataclass(frozen=True)
class CompareConfig:
    """Which runs, and what of them.

    Attributes:
        outputs: run directories of jobs/reconstruct.py; where none is named, MLflow is asked.
        experiment: the experiment's name in MLflow.
        filter: which of its runs, in MLflow's words: "metrics.psnr > 25 and params.`solver.steps` = '1000'".
        sort: a metric; the highest comes first.
        ascending: the lowest comes first.
        metrics: what to show.
        limit: of MLflow's runs, only so many of the newest.
        tracking_uri: an MLflow server or database; default MLFLOW_TRACKING_URI, else mlflow.db in the working folder.
    """

    outputs: list[str] = field(default_factory=list)
    experiment: str = "flashray"
    filter: str = ""
    sort: str = ""
    ascending: bool = False
    metrics: list[str] = field(default_factory=lambda: list(SHOWN))
    limit: int = 50
    tracking_uri: str | None = None


def main(config: CompareConfig) -> None:
    if config.outputs:
        rows = [row_of_output(output) for output in config.outputs]
    else:
        uri = config.tracking_uri or default_uri("run")
        rows = [
            Row(f"{one.info.run_name} {one.info.run_id[:8]}", one.info.status, one.data.params, one.data.metrics)
            for one in find_runs(uri, config.experiment, config.filter, config.limit)
        ]
    if not rows:
        raise ConfigError(f"experiment {config.experiment}: no run passes the filter {config.filter!r}")
    print(compare(by_metric(rows, config.sort, config.ascending) if config.sort else rows, config.metrics))


if __name__ == "__main__":
    sys.exit(run(CompareConfig, main))
