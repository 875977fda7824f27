"""The index of an archive's shards, kept in the run's records, so that a restart does not read the shards again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from flashray import storage
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import parquet
from flashray.shards.shard_index import index_shards

_MADE_FROM = b"flashray.made_from"


@dataclass(frozen=True)
class Index:
    """The table of `index_shards`, and whether it was made anew."""

    table: pa.Table
    anew: bool


def index_of(
    output: str | None,
    shards: Sequence[tuple[str, int]],
    is_image: Callable[[str], bool],
    names: Collection[str],
) -> Index:
    """The index of these shards: the one in the output's records, where it was made from them.

    Args:
        output: whose records are looked at; None looks at none.
    """
    made_from = json.dumps([sorted(names), shards]).encode()
    if output is not None:
        try:
            kept = pq.read_table(io.BytesIO(storage.read_bytes(_index_uri(output))), read_dictionary=["uri"])
            if (kept.schema.metadata or {}).get(_MADE_FROM) == made_from:
                return Index(kept, anew=False)
        except (OSError, pa.ArrowException):  # none there yet, or damaged: it only saves time
            pass
    found = index_shards(shards, is_image, names)
    return Index(found.replace_schema_metadata({_MADE_FROM: made_from}), anew=True)


def write_index(output: str, index: pa.Table) -> None:
    """Keep an index in the output's records."""
    storage.put_bytes(_index_uri(output), parquet(index))


def _index_uri(output: str) -> str:
    return run_uri(output, "index.parquet")
