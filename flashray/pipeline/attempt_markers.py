"""Attempt markers: which units a worker began, kept in the run folder so that deaths of the driver count too.

`attempts/<unit>.<n>` is written before the n-th attempt at a unit. Once the unit's images are solved one by one, it is
written again before each image and names it. The marker goes when the unit is solved. A unit whose marker is there when
the next driver starts has killed its worker, or died with its driver. A write that fails is a warning only: markers
help a run that dies again and again, and must not stop other runs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flashray import storage
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import own_names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Past:
    """The history of a piece of work."""

    deaths: int = 0  # how often it was begun and did not end
    culprits: frozenset[str] = frozenset()  # images that were solved alone when the worker died


def put(output: str, unit_id: str, number: int, image: str | None = None) -> None:
    """Record that attempt `number` (from 1) at a unit begins, or that it begins this image alone."""
    by = {"image": image, "pid": os.getpid()}
    try:
        storage.put_bytes(_uri(output, f"{unit_id}.{number}"), json.dumps(by).encode())
    except OSError as error:
        log.warning("no attempt marker for unit %s: %s", unit_id, storage.redact(str(error)))


def read(output: str, units: Collection[str]) -> dict[str, Past]:
    """The history of those of these units that earlier drivers began."""
    deaths: dict[str, int] = {}
    culprits: dict[str, set[str]] = {}
    for name in own_names(_uri(output), r"[^/]+\.\d{1,9}"):
        unit_id, _, number = name.rpartition(".")
        if unit_id not in units:
            continue
        deaths[unit_id] = max(deaths.get(unit_id, 0), int(number))
        if int(number) > 2:  # the first two attempts take all images together
            try:
                image = json.loads(storage.read_bytes(_uri(output, name)))["image"]
            except (ValueError, TypeError, KeyError):  # damaged: the death counts, and nobody is blamed
                image = None
            culprits.setdefault(unit_id, set()).update({image} - {None})
    return {unit: Past(count, frozenset(culprits.get(unit, ()))) for unit, count in deaths.items()}


def forgive(output: str, begun: Mapping[str, int]) -> None:
    """Delete the markers of attempts (unit: number) that end well: solved, or stopped in good order with the driver."""
    try:
        for unit_id, number in begun.items():
            storage.delete(_uri(output, f"{unit_id}.{number}"))
    except OSError as error:
        log.warning("attempt markers could not be deleted: %s", storage.redact(str(error)))


def forget(output: str) -> None:
    """Delete all markers: every unit is committed, or new units are made."""
    storage.delete(_uri(output))


def _uri(output: str, *name: str) -> str:
    return run_uri(output, "attempts", *name)
