"""Bring to MLflow what a run directory keeps for it: python jobs/replay_tracking.py --output RUN [--tracking_uri URI].

Running it again adds nothing. With another --tracking_uri the whole run is made there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from flashray import storage
from flashray.cli import run
from flashray.errors import ConfigError
from flashray.pipeline.lease import held
from flashray.pipeline.run_record import note_tracked, read_record
from flashray.tracking.replay import replay


@dataclass(frozen=True)
class ReplayConfig:
    """What to bring where.

    Attributes:
        output: a run directory of jobs/reconstruct.py or jobs/benchmark.py, a folder or s3:// prefix.
        tracking_uri: an MLflow server or database; default the one that the run was to be tracked at.
    """

    output: str
    tracking_uri: str | None = None


def main(config: ReplayConfig) -> None:
    output = storage.normalise(config.output)
    if read_record(output) is None:
        raise ConfigError(f"output {output} holds no run; name the --output of a job")
    with held(output):  # so no driver is at work: one that did not tell its end was killed
        sent, tracked = replay(output, config.tracking_uri)
        note_tracked(output, read_record(output) or {}, tracked)
    print(f"{sent} events sent: {tracked.get('serve') or tracked['url']}")


if __name__ == "__main__":
    sys.exit(run(ReplayConfig, main))
