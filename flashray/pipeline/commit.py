"""Commit markers: the only record of which images are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from flashray import storage
from flashray.pipeline.run_config import METRICS
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import own_names, parquet, read_table

# of the reconstruction, of the measurement itself, and of the decoded estimate ẑ alone
SCORED = ("", "measurement_", "estimate_", "decoded_")
FILE = pa.struct([("name", pa.string()), ("sha256", pa.string()), ("size", pa.int64())])  # below the output
COMMIT = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),  # ok or error
        ("error", pa.string()),
        ("start_step", pa.int32()),
        ("nfe", pa.float64()),
        ("sigma_hat", pa.float64()),
        ("sigma_true", pa.float64()),
        ("sha256", pa.string()),  # of the restored image's bytes
        ("size", pa.int64()),  # their number
        ("offset", pa.int64()),  # in its shard: of its first byte in a tar, its row in Parquet; null without shards
        ("shard_size", pa.int64()),  # bytes of that shard
        ("shard_sha256", pa.string()),
        ("samples", pa.list_(FILE)),  # the further samples and, last, the map of their spread; null without
        ("spread", pa.float64()),  # mean standard deviation over the samples, in grey levels; null without
        ("unchanged", pa.bool_()),  # no pixel would change by half a level: the file's own bytes were written
        ("lost", pa.string()),  # what the file had and the restored one does not hold, joined by "; "; null for nothing
        ("warnings", pa.string()),  # what was unclear in the file, joined by a space; null for nothing
        ("seconds", pa.float64()),  # the image's share of the solver's time
        *((prefix + metric, pa.float64()) for prefix in SCORED for metric in METRICS),
    ]
)
_READERS = 16


def write_commit(output: str, unit_id: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Create the marker of a unit whose images are all written; False when another writer was first."""
    data = parquet(pa.Table.from_pylist(list(rows), schema=COMMIT))
    return storage.create_if_absent(run_uri(output, "commits", f"{unit_id}.parquet"), data)


def committed_units(output: str) -> set[str]:
    """The ids of the units that are done."""
    names = own_names(run_uri(output, "commits"), r"[^./][^/]*\.parquet")
    return {name.removesuffix(".parquet") for name in names}


def read_commits(output: str, unit_ids: Iterable[str]) -> pa.Table:
    """The rows of these units' markers, with a column unit_id; ConfigError for a damaged one."""

    def read(unit_id: str) -> pa.Table:
        uri = run_uri(output, "commits", f"{unit_id}.parquet")
        table = read_table(uri, COMMIT, "delete it, and the same command restores its images again", ("key", "status"))
        return table.append_column("unit_id", pa.array([unit_id] * len(table), pa.string()))

    with ThreadPoolExecutor(_READERS) as readers:
        tables = list(readers.map(read, sorted(unit_ids)))
    return pa.concat_tables([COMMIT.append(pa.field("unit_id", pa.string())).empty_table(), *tables])
