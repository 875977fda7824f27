"""The Parquet files of a run folder: each is written in one piece, and read with every check."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from flashray import storage
from flashray.errors import ConfigError


def parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def read_table(uri: str, schema: pa.Schema, remedy: str, needed: Sequence[str] = ("key",)) -> pa.Table:
    """A table of `schema`; columns that earlier versions did not write are null, and others are passed over.

    ConfigError when the file is empty, cut short, or no such table; OSError when it cannot be read. `remedy`, the end
    of a sentence, says what to do about a damaged file; `needed` are columns that every version wrote.
    """
    data = storage.read_bytes(uri)
    try:
        found = pq.read_table(io.BytesIO(data))
        found.validate(full=True)  # text that is no UTF-8, above all
        lacking = [name for name in needed if name not in found.column_names]
        lacking += ["key"] if "key" in found.column_names and found["key"].null_count else []
        if lacking:
            raise pa.ArrowInvalid(f"column {', '.join(lacking)} is missing or has gaps")
        return conformed(found, schema)
    except (pa.ArrowException, OSError, KeyError, UnicodeError) as error:
        brief = " ".join(str(error).split())[:200]
        raise ConfigError(f"{uri} is damaged, or of another version of flashray ({brief}); {remedy}") from error


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of a schema and their types: those that it lacks are null, others are left out."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def own_names(folder: str, pattern: str) -> list[str]:
    """The names in one of the run's folders that it wrote, numbers in their order; others are passed over."""
    found = [entry.key for entry in storage.list_files(folder) if re.fullmatch(pattern, entry.key)]
    return sorted(found, key=lambda name: (len(name), name))  # plan-99 comes before plan-100
