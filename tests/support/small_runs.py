"""Runs of a few images, written by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from flashray import storage
from flashray.pipeline.commit import write_commit
from flashray.pipeline.plan import PLAN, plan_path, write_plan

KEYS = ["a.png", "b c.png", "deep/d.png", "e.png"]


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
