"""Bring to MLflow what a run directory keeps for it."""

from __future__ import annotations

from typing import Any

from flashray.errors import ConfigError, FlashrayError
from flashray.tracking.client import brief, load_mlflow, uri_again
from flashray.tracking.sender import Sender
from flashray.tracking.spool import Spool


def replay(output: str, tracking_uri: str | None = None) -> tuple[int, dict[str, Any]]:
    """Send all that is not in MLflow yet; (the number of events that were sent, what run.json shows).

    Nobody else may be at work on the run: where the last driver did not tell its end it was killed, and the run is
    marked so.

    Args:
        output: the run directory's URI.
        tracking_uri: where to send it; default where it was to go. Another place than before gets all of it.

    Raises:
        ConfigError: when the directory was never tracked, or the address is not known.
        FlashrayError: when MLflow does not take it.
    """
    spool = Spool(output)
    starts = list(spool.of("start"))
    if not starts or spool.last is None:
        raise ConfigError(f"output {output} keeps nothing for MLflow: {output}/tracking holds no start of a run")
    uri = uri_again(starts[-1]["tracking_uri"], tracking_uri)
    if spool.last["kind"] != "end":
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
