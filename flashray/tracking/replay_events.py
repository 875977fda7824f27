"""Send to MLflow what it lacks of a run."""

from __future__ import annotations

from typing import Any

from flashray.errors import ConfigError, FlashrayError
from flashray.tracking.client import brief, load_mlflow, uri_again
from flashray.tracking.sender import Sender
from flashray.tracking.spool import Spool


def replay(folder: str, tracking_uri: str | None = None) -> tuple[int, dict[str, Any]]:
    """Send all events that are not in MLflow yet; their number, and what run.json shows (`Sender.record`).

    No driver may be at work on the run: one whose last driver did not record its end is marked as killed. ConfigError
    when the run was never tracked, or the password of its server is not known; FlashrayError when MLflow does not take
    all of it. `folder` is the URI of the run's folder, which holds run.json; `tracking_uri` is the server or database,
    by default where the run was tracked. Another one gets the whole run.
    """
    try:
        spool = Spool(folder)
        starts = list(spool.of("start", "resume"))
        shown = starts[-1]["tracking_uri"] if starts else ""
        status = spool.status
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{folder}/tracking is damaged ({brief(error)}); delete the damaged file") from error
    if not starts:
        raise ConfigError(f"output {folder} keeps nothing for MLflow: its folder tracking holds no start of a run")
    uri = uri_again(shown, tracking_uri)
    if status == "RUNNING":
        spool.append("end", status="KILLED")
    load_mlflow()
    sender = Sender(uri, spool)
    before = len(spool.pending())
    try:
        sender.send()
    except Exception as error:
        left = len(spool.pending())
        raise FlashrayError(
            f"MLflow at {sender.record['tracking_uri']} took {before - left} of {before} events: {brief(error)}. "
            "The same command sends the rest"
        ) from error
    return before, sender.record
