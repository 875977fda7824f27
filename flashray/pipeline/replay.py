"""Send the events in a run folder to MLflow."""

from __future__ import annotations

from flashray.pipeline.lease import held
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_record import given_record, note_tracked
from flashray.tracking.replay_events import replay


def replay_output(output: str, tracking_uri: str | None = None) -> str:
    """Send what MLflow lacks of a run; returns a line to print. Running it again adds nothing.

    ConfigError when the output holds no run, or MLflow does not answer; FlashrayError when a driver is at work on it.
    """
    output, record = given_record(output)
    with held(output):  # so no driver is working: a run without a recorded end was killed
        sent, tracked = replay(run_uri(output), tracking_uri)
        note_tracked(output, record, tracked)
    return f"{sent} events sent: {tracked.get('serve') or tracked['url']}"
