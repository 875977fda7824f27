"""The index of all shards of an archive: which images there are, and where the bytes of each lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError
from flashray.shards.parquet_shard import index_parquet
from flashray.shards.tar_shard import index_tar

_TAR, _PARQUET = ".tar", ".parquet"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_READERS = 16


def shards_among(archive: str, images: Sequence[str], others: Sequence[str]) -> set[str]:
    """Those of an archive's other files that hold its images, by their names, where these are not loose.

    Parquet beside loose images is a table about them. Compressed tars are among them, and refused when opened.
    ConfigError for tars beside loose images.
    """
    tars = [name for name in others if name.lower().endswith((_TAR, *_PACKED))]
    if not images:
        return {*tars, *(name for name in others if name.lower().endswith(_PARQUET))}
    if tars:
        raise ConfigError(
            f"{archive} holds loose images ({images[0]!r}) and tars ({tars[0]!r}): move the ones elsewhere, or name a "
            "folder below it, or one shard"
        )
    return set()


def index_shards(
    shards: Sequence[tuple[str, int]], is_image: Callable[[str], bool], names: Collection[str] = ()
) -> pa.Table:
    """One row an image, in the order of the shards and within each of its members: uri, key, offset, length, size,
    refused, and those of `names` that any shard has.

    `shards` are (URI, size in bytes). `is_image` tells by its name whether a member of a tar is one. `names` are of
    numbers that columns of Parquet, and JSON sidecars in a tar, may give. ConfigError for the first shard that is
    unsound or of a kind that is not read, and for keys that two images have.
    """

    def indexed(shard: tuple[str, int]) -> pa.Table:
        uri, size = shard
        try:
            storage.refuse_special(uri)
            if uri.lower().endswith(_PARQUET):
                return storage.asked(uri, lambda uri: index_parquet(uri, names))
            return storage.asked(uri, lambda uri: index_tar(uri, size, is_image, names))
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"shard {uri} cannot be read: {error}") from error

    with ThreadPoolExecutor(_READERS) as readers:
        return joined(shards, list(readers.map(indexed, shards)))


def joined(shards: Sequence[tuple[str, int]], tables: Sequence[pa.Table]) -> pa.Table:
    """The index of an archive from those of its shards; ConfigError for keys that two images have."""
    counts = np.array([len(table) for table in tables], np.int64)
    try:
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise ConfigError(f"columns of one name are of different types in the shards: {error}") from error
    number = pa.array(np.repeat(np.arange(len(tables), dtype=np.int32), counts))
    uris = pa.DictionaryArray.from_arrays(number, pa.array([uri for uri, _ in shards], pa.string()))
    table = table.append_column("uri", uris)
    _refuse_doubled(table)
    return table


def doubled(keys: pa.ChunkedArray) -> list[str]:
    """The values that occur more than once."""
    counted = pc.value_counts(keys.combine_chunks())
    return counted.field("values").filter(pc.greater(counted.field("counts"), 1)).to_pylist()


def _refuse_doubled(table: pa.Table) -> None:
    if pc.count_distinct(table["key"]).as_py() == len(table):
        return
    twice = doubled(table["key"])
    where = table.filter(pc.equal(table["key"], twice[0]))["uri"].to_pylist()
    raise ConfigError(
        f"{len(twice):,} keys are in the shards more than once, such as {twice[0]!r} in {where[0]} and "
        f"{where[1]}; keys name images, so give each its own"
    )
