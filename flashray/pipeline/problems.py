"""The images that somebody should look at: those that failed, lost something, or were unclear."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from flashray import storage
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_status import RunStatus

NAMED = 5  # failed images in a message


def first_errors(failures: pa.Table) -> list[str]:
    """`key: error` of the first failed images."""
    return [f"{row['key']}: {row['error']}" for row in failures.slice(0, NAMED).to_pylist()]


def problems_uri(output: str) -> str:
    """Where a run's list is."""
    return run_uri(output, "problems.csv")


def write_problems(output: str, status: RunStatus) -> None:
    """Write the list as CSV with the columns key, kind (failed, lost or warnings) and text."""
    results = status.results
    parts = [_rows(status.failures, "failed", "error")]
    parts += [_rows(results.filter(pc.is_valid(results[name])), name, name) for name in ("lost", "warnings")]
    data = io.BytesIO()
    pyarrow.csv.write_csv(pa.concat_tables(parts), data)
    storage.put_bytes(problems_uri(output), data.getvalue())


def _rows(images: pa.Table, kind: str, column: str) -> pa.Table:
    return pa.table({"key": images["key"], "kind": pa.array([kind] * len(images), pa.string()), "text": images[column]})
