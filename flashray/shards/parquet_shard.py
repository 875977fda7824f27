"""Parquet shards: a row an image, with a key, the image's bytes, and columns of its parameters."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flashray import storage
from flashray.errors import ConfigError

ROWS = 16  # of a row group that is written: whoever reads one image reads so many
_BATCH, _BUFFER = 16, 4 * 2**20  # rows that are unpacked at once, bytes that are read at once
_KEYS = ("key", "__key__")


def index_parquet(uri: str, names: Collection[str]) -> pa.Table:
    """One row an image: key, offset (its row), length (null), size, refused (null), and those of `names` that it has.

    Only the footer and these columns are read. The size is the mean of the image's row group. ConfigError when it is
    cut short or no Parquet, or its columns are not an archive's.
    """
    try:
        with storage.opened(uri) as file:
            shard = pq.ParquetFile(file)
            schema = shard.schema_arrow
            if twice := [name for name in schema.names if schema.names.count(name) > 1]:
                raise ConfigError(f"shard {uri} has several columns {twice[0]}; give each column a name of its own")
            image = _image_column(uri, schema)
            key = next((name for name in _KEYS if name in schema.names), f"{image}.path")
            if key not in _KEYS and not _has_field(schema.field(image).type, "path"):
                raise ConfigError(f"shard {uri} has no column key; it has {schema.names}")
            used = [name for name in names if name in schema.names]
            table = shard.read(columns=[key, *used])
            sizes = _sizes(shard.metadata, image)
    except (pa.ArrowException, ValueError) as error:
        raise ConfigError(f"shard {uri} is no sound Parquet, or cut short ({_brief(error)}); make it again") from error
    keys = table[key] if key in _KEYS else pc.struct_field(table[image], "path")
    columns = {
        "key": _texts(uri, key, keys),
        "offset": pa.array(np.arange(len(table))),
        "length": pa.nulls(len(table), pa.int64()),
        "size": pa.array(sizes, pa.int64()),
        "refused": pa.nulls(len(table), pa.string()),
    }
    return pa.table(columns | {name: table[name] for name in used})


def read_rows(uri: str, rows: Sequence[int]) -> list[bytes | None]:
    """The image bytes of these rows; None where a row has none.

    Raises what `storage.read_bytes` raises, and ValueError when it is no sound Parquet, or has no such row.
    """

    def read(uri: str) -> dict[int, bytes | None]:
        found: dict[int, bytes | None] = {}
        with storage.opened(uri) as file:
            shard = pq.ParquetFile(file, buffer_size=_BUFFER)
            image = _image_column(uri, shard.schema_arrow)
            packed = _has_field(shard.schema_arrow.field(image).type, "bytes")
            ends = np.cumsum([shard.metadata.row_group(g).num_rows for g in range(shard.num_row_groups)])
            for group in np.unique(np.searchsorted(ends, rows, side="right")).tolist():
                first = int(ends[group - 1]) if group else 0
                wanted = {row - first for row in rows if first <= row < ends[group]}
                column, place = f"{image}.bytes" if packed else image, 0
                for batch in shard.iter_batches(_BATCH, row_groups=[group], columns=[column]):
                    values = batch.column(0).field("bytes") if packed else batch.column(0)
                    found |= {
                        first + row: values[row - place].as_py() for row in wanted if 0 <= row - place < len(batch)
                    }
                    place += len(batch)
                    if place > max(wanted):
                        break
        return found

    found = storage.asked(uri, read)
    return [found[row] for row in rows]


def parquet_of(keys: Sequence[str], images: Sequence[bytes], columns: Mapping[str, pa.Array]) -> bytes:
    """A shard of these images with further columns. Equal values give equal bytes, with one version of pyarrow."""
    table = pa.table({"key": pa.array(keys, pa.string()), "image": pa.array(images, pa.binary())} | dict(columns))
    target = io.BytesIO()
    # images are compressed already
    pq.write_table(table, target, row_group_size=ROWS, compression="none", use_dictionary=False, write_statistics=False)
    return target.getvalue()


def _image_column(uri: str, schema: pa.Schema) -> str:
    """`image`, or the only column of bytes; a struct of bytes and path, as Hugging Face's datasets have, is one too."""
    found = [field.name for field in schema if _is_bytes(field.type) or _has_field(field.type, "bytes")]
    if "image" in found:
        return "image"
    if "image" in schema.names:
        raise ConfigError(
            f"shard {uri}: column image is of type {schema.field('image').type}; give the files' bytes, or a struct of "
            "bytes and path"
        )
    if len(found) != 1:
        several = f"several columns of bytes ({', '.join(found)})" if found else "no column of image bytes"
        raise ConfigError(f"shard {uri} has {several}; name the images' column image. It has {schema.names}")
    return found[0]


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _has_field(kind: pa.DataType, name: str) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
        return False
    return name != "bytes" or _is_bytes(kind.field(name).type)


def _texts(uri: str, name: str, column: pa.ChunkedArray) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ConfigError(f"shard {uri}: column {name} is of type {kind}; keys are text")
    column = column.cast(pa.string())
    lacking = pc.fill_null(pc.equal(column, ""), True)
    if pc.any(lacking).as_py():
        raise ConfigError(f"shard {uri}: row {pc.index(lacking, True).as_py()} has no {name}")
    return column.combine_chunks()


def _sizes(metadata: pq.FileMetaData, image: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[rows] bytes of an image, about."""
    mean, rows = [], []
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        chunks = [group.column(number) for number in range(group.num_columns)]
        size = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema in (image, f"{image}.bytes"))
        rows.append(group.num_rows)
        mean.append(size // max(group.num_rows, 1))
    return np.repeat(np.array(mean, np.int64), rows)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
