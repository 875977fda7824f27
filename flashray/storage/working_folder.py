"""Whether a place means the same to the driver as to whoever gave it, and to every worker."""

from __future__ import annotations

import os

from flashray import storage
from flashray.errors import ConfigError


def in_submitted_job() -> bool:
    """Whether this process was started by `ray job submit` (or a RayJob)."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_relative(**places: str | None) -> None:
    """Refuse relative paths where the work is not done in the folder that they are relative to.

    The ConfigError names the argument, why it is refused, and what to give instead.
    """
    reason = _elsewhere()
    if reason is None:
        return
    for name, place in places.items():
        if place and not storage.is_absolute(place):
            raise ConfigError(
                f"{name} is {place!r}, a relative path: {reason}. Give a URI (s3://bucket/prefix), or the absolute "
                "path of a folder that every node mounts"
            )


def _elsewhere() -> str | None:
    """Why a relative path would be another folder where the work is done; None on this machine alone."""
    if in_submitted_job():
        return (
            "a submitted Ray job runs in a temporary copy of the working folder, and what it wrote there would be lost"
        )
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        return f"the nodes of the Ray cluster RAY_ADDRESS={storage.redact(address)} do not have this working folder"
    return None
