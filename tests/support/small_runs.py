"""Runs of a few images, written by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from flashray import storage
from flashray.pipeline.attempt_markers import Past
from flashray.pipeline.commit import write_commit
from flashray.pipeline.plan import PLAN, plan_path, write_plan
from flashray.pipeline.quarantine import Watch, unnoted
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.pipeline.write import write

KEYS = ["a.png", "b c.png", "deep/d.png", "e.png"]


@contextmanager
def _unwatched(*_: Any) -> Iterator[Watch]:
    yield Watch(None, "", Past(), unnoted)


def write_unwatched(table: pa.Table, work: WorkerSettings) -> pa.Table:
    """The write stage without a quarantine, which is an actor of Ray."""
    with mock.patch("flashray.pipeline.write.watched", _unwatched):
        return write(table, work, None)


def record_of(images: int) -> dict[str, Any]:
    config = {"io": {"format": "same"}}
    return {"created": "now", "archive": {"images": images}, "config": config, "fingerprint": {}}


def replan(output: Path, attempt: int, plan: pa.Table) -> None:
    """Another plan of an attempt, in place of the one that is there."""
    storage.delete(plan_path(str(output), attempt))
    write_plan(str(output), attempt, plan)


def planned(keys: list[str], units: list[str | None], attempt: int = 0) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"key": key, "unit_id": unit, "status": "error" if unit is None else "ok", "nfe": 3}
        for key, unit in zip(keys, units, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PLAN)


def commit(output: Path, unit: str, keys: list[str], failed: tuple[str, ...] = ()) -> None:
    rows = []
    for key in keys:
        if key in failed:
            rows.append({"key": key, "status": "error", "error": "diverged"})
            continue
        path = output / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(key.encode())
        digest = hashlib.sha256(key.encode()).hexdigest()
        rows.append({"key": key, "status": "ok", "sha256": digest, "size": len(key.encode())})
    write_commit(str(output), unit, rows)
