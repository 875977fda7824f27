"""The archive's listing: which images there are, and what else."""

from __future__ import annotations

import hashlib
import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flashray import storage
from flashray.errors import ConfigError
from flashray.images import IMAGE_SUFFIXES, PLUGIN_SUFFIXES, is_photo_name
from flashray.pipeline.manifest import manifest_columns
from flashray.pipeline.outputs import refuse_taken, refuse_without_suffix, without_place
from flashray.pipeline.run_config import IoConfig, RunConfig
from flashray.pipeline.run_folder import run_files, run_uri
from flashray.pipeline.run_tables import parquet
from flashray.shards.shard_index import index_shards, shards_among
from flashray.shown import storable

LISTING = pa.schema(
    [
        ("index", pa.int64()),  # position in the listing
        ("key", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),  # with the length, where in its shard: `shards.place.Place`; null for loose images
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("given", pa.string()),  # the manifest's parameters, or the URI of its mask, as JSON; null without
        ("noise_std", pa.float64()),  # the manifest's, null without
        ("mask_size", pa.int64()),  # of the mask's file, null without
        ("refused", pa.string()),  # why it is not restored, whatever its file holds; null for nothing
    ]
)
_PLACES = ["uri", "offset", "length", "size", "refused"]  # of an index, besides the key and parameters
_INDEX, _MADE_FROM = "index.parquet", b"flashray.made_from"  # of shards, in the run folder; what it was made from
_LETTERS = 2**31 - 1  # bytes of all addresses: what a column of Arrow strings can hold
_APART = "it is a link to the run's own output"
# an image with the same key and another of these has changed
OF_MANIFEST = ["given", "noise_std", "mask_size"]  # or of the shards' own columns
_COMPARED = ["size", "offset", *OF_MANIFEST]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """What an archive holds."""

    images: pa.Table  # of `LISTING`, sorted by key or, in shards, by shard and the place in it; cut to `limit`
    total: int = 0  # how many there are without a limit
    others: list[storage.Entry] = field(default_factory=list)  # files that are no images by their names, or hidden
    unreadable: list[str] = field(default_factory=list)  # folders that cannot be listed, with the reason
    index: pa.Table | None = None  # of the shards, where it was read anew


def read_archive(config: RunConfig, predicted: Collection[str] = (), taken: pa.ChunkedArray | None = None) -> Archive:
    """Everything below the archive: its images, or where it holds none, those in its shards.

    Pipes, devices, dead links and names that are not UTF-8 are images by their names like any other: reading them
    fails, and their rows say why. So do links that lead to the output, back to a folder above them, or nowhere,
    whatever their names are, because they may hide images; beside shards they are other files.

    `predicted` is what the severity encoder estimates of an image that the manifest gives nothing for. The keys in
    `taken` count first for the limit, because the run has taken them before. ConfigError when the archive is missing or
    holds no image, a folder of it cannot be read, it holds both loose images and tars, a shard is unsound, or the
    manifest does not fit.
    """
    archive, io = config.io.archive, config.io
    root, entries, unreadable = _entries(config)
    shards = _shards(root, entries, io)
    images = [] if shards else [entry for entry in entries if _is_image(entry)]
    if not images and not shards:
        names = f"known: {', '.join(IMAGE_SUFFIXES + PLUGIN_SUFFIXES)}; in shards: .tar, .parquet"
        if len(entries) == 1 and storage.join(root, entries[0].key) == archive:
            raise ConfigError(f"{archive} does not have an image's suffix; rename it ({names})")
        raise ConfigError(f"archive {archive} holds no images ({len(entries)} files; {names})")
    known = {entry.key for entry in (*images, *shards)}
    others = [entry for entry in entries if entry.key not in known]
    if others:
        kinds = Counter(
            "hidden" if is_hidden(entry.key) else posixpath.splitext(entry.key)[1].lower() or "without suffix"
            for entry in others
        )
        log.warning(
            "%d files of the archive do not have an image's name (%s) and are %s",
            *(len(others), ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())),
            "copied as they are" if io.copy_others else "left out; --copy-others copies them",
        )
    index, anew = None, False
    if shards:
        index, anew = _index(config, [(storage.join(root, one.key), one.size) for one in shards])
    table = _loose(root, images, io.max_megapixels) if index is None else _sharded(index)
    total, table = len(table), limited(table, config.policy.limit, taken)
    keys = table["key"].to_pylist()
    refused = without_place(keys, io.format)
    refuse_taken([] if io.shards != "none" else keys, io.format, [one.key for one in others] if io.copy_others else [])
    refuse_without_suffix(keys, io)
    like_shards = [one.key for one in others if re.fullmatch(r"\d{2,}-\d{8}\.(tar|parquet)", one.key)]
    if io.copy_others and io.shards != "none" and like_shards:
        raise ConfigError(
            f"{like_shards[0]!r} is named like a shard of the output; rename it, or leave out --copy-others"
        )
    if refused:
        why = pa.array([refused.get(key) for key in keys], pa.string())
        table = table.set_column(table.column_names.index("refused"), "refused", pc.coalesce(table["refused"], why))
    table = table.append_column("index", pa.array(np.arange(len(table))))
    carried = None if index is None or io.simulated else index.drop_columns(_PLACES)
    for name, values in manifest_columns(config, table["key"], predicted, carried).items():
        table = table.append_column(name, values)
    table = table.select(LISTING.names).cast(LISTING)
    return Archive(table, total, others, unreadable, index if anew else None)


def limited(table: pa.Table, limit: int | None, taken: pa.ChunkedArray | None = None) -> pa.Table:
    """The rows of the images that were taken before, and the first others, so many in all."""
    if limit is None or taken is None:
        return table.slice(0, limit)
    before = pc.is_in(table["key"], taken.combine_chunks()).to_numpy()
    others = np.flatnonzero(~before)[: max(limit - int(before.sum()), 0)]
    return table.take(pa.array(np.sort(np.append(np.flatnonzero(before), others))))


def _entries(config: RunConfig) -> tuple[str, list[storage.Entry], list[str]]:
    """(a folder, every file below it that is the archive's and no run's, the folders that are left out)."""
    archive = config.io.archive
    try:
        if not storage.exists(archive):
            raise ConfigError(f"archive {archive} does not exist")
        size = storage.file_size(archive)
        if size is not None:
            return posixpath.dirname(archive), [storage.Entry(posixpath.basename(archive), size)], []
        listed = storage.list_everything(archive, apart=config.io.output)
    except OSError as error:
        raise ConfigError(f"archive {archive} cannot be listed: {error}") from error
    if listed.unreadable and not config.io.skip_unreadable:
        raise ConfigError(
            f"archive {archive} has folders that cannot be read: {', '.join(listed.unreadable)}; correct their "
            "permissions, or leave them out with --skip-unreadable"
        )
    own = run_files([entry.key for entry in listed.entries])
    return archive, [entry for entry in listed.entries if entry.key not in own], listed.unreadable


def _shards(root: str, entries: list[storage.Entry], io: IoConfig) -> list[storage.Entry]:
    """The files that hold the archive's images, where they are not loose; the manifest is none, wherever it lies."""
    images = [entry.key for entry in entries if is_photo_name(entry.key) and not is_hidden(entry.key)]
    others = [e.key for e in entries if not is_hidden(e.key) and storage.join(root, e.key) != io.manifest]
    found = shards_among(f"archive {io.archive}", images, others)
    return [entry for entry in entries if entry.key in found]


def _index(config: RunConfig, shards: list[tuple[str, int]]) -> tuple[pa.Table, bool]:
    """(the index of the archive's shards (URI, size), whether it was read anew).

    The one in the run's records saves a restart from reading the shards again, where it was made from them and no
    failed image may have been replaced.
    """
    degradation, policy = config.recipe.degradation.make(), config.policy
    names = () if degradation.unknown else (*degradation.parameter_names, "noise_std")
    # the times too, because shards of one size may have exchanged their names
    made_from = json.dumps([sorted(names), [(*one, storage.modified(one[0])) for one in shards]]).encode()
    if not policy.retry_failed and policy.overwrite is None:
        try:
            data = storage.read_bytes(run_uri(config.io.output, _INDEX))
            kept = pq.read_table(pa.BufferReader(data), read_dictionary=["uri"])
            if (kept.schema.metadata or {}).get(_MADE_FROM) == made_from:
                return kept, False
        except (OSError, pa.ArrowException):  # none there yet, or damaged: it only saves time
            pass
    found = index_shards(shards, lambda name: is_photo_name(name) and not is_hidden(name), names)
    if not len(found):
        raise ConfigError(f"the {len(shards)} shards of archive {config.io.archive} hold no images")
    return found.replace_schema_metadata({_MADE_FROM: made_from}), True


def write_index(output: str, index: pa.Table) -> None:
    """Keep the index of an archive's shards in the output's records."""
    storage.put_bytes(run_uri(output, _INDEX), parquet(index))


def _sharded(index: pa.Table) -> pa.Table:
    """The listing of an index, without its columns of parameters."""
    table = index.select(["key", *_PLACES])
    return table.set_column(1, "uri", table["uri"].cast(pa.string()))


def _loose(root: str, images: list[storage.Entry], megapixels: float) -> pa.Table:
    """The listing of loose images; those whose files are larger than so many pixels need are refused."""
    keys = _keys(images)
    letters = sum(len(key.encode()) for key in keys) + len(keys) * (len(root.encode()) + 1)
    if letters > _LETTERS:
        raise ConfigError(
            f"the addresses of the archive's {len(keys):,} images have {letters / 1e9:.1f} GB, and one run holds "
            f"at most {_LETTERS / 1e9:.1f}; restore it in several runs, one a folder, or pack it into shards"
        )
    most = 16e6 * megapixels + 2**26  # bytes: a pixel has at most 16, and 64 MiB are for all else
    large = f"MB are more than an image needs; the limit is {megapixels:g} megapixels (--max-megapixels)"
    sizes = [f"its {one.size / 1e6:,.0f} {large}" if one.size > most else None for one in images]
    refused = [_APART if one.apart else size for one, size in zip(images, sizes, strict=True)]
    return pa.table(
        {
            "uri": pa.array([storage.join(root, key) for key in keys], pa.string()),
            "key": pa.array(keys, pa.string()),
            "offset": pa.nulls(len(keys), pa.int64()),
            "length": pa.nulls(len(keys), pa.int64()),
            "size": pa.array([entry.size for entry in images], pa.int64()),
            "refused": pa.array(refused, pa.string()),
        }
    )


def listing_hash(listing: pa.Table) -> str:
    """SHA-256 of the keys, and of the columns that are compared."""
    digest = hashlib.sha256()
    for batch in listing.select(["key", *_compared(listing)]).to_batches(max_chunksize=100_000):
        lines = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        digest.update("".join(f"{line!r}\n" for line in lines).encode())
    return digest.hexdigest()


def _compared(listing: pa.Table) -> list[str]:
    """The columns that tell a changed image; in shards the shard's address too, because a place in another shard is
    another image's. A loose image's address follows from its key.
    """
    return _COMPARED if listing["offset"].null_count == len(listing) else [*_COMPARED, "uri"]


def differences(old: pa.Table, new: pa.Table, ignored: Sequence[str] = ()) -> dict[str, list[str]]:
    """Keys `added`, `removed` and `changed` (also in parameters, mask or shard) from one listing to another."""
    before, after = old["key"], new["key"]
    added = new.filter(pc.invert(pc.is_in(after, before)))["key"].to_pylist()
    removed = old.filter(pc.invert(pc.is_in(before, after)))["key"].to_pylist()
    common = new.filter(pc.is_in(after, before))
    row = pc.index_in(common["key"], before)
    same = pa.array([True] * len(common))
    for name in (name for name in _compared(new) if name not in ignored):
        was, now = old[name].take(row), common[name]
        equal = pc.fill_null(pc.equal(was, now), False)
        if name == "given":  # 1 and 1.0 are one number
            rows = np.flatnonzero(~equal.to_numpy() & was.is_valid().to_numpy() & now.is_valid().to_numpy())
            alike = equal.to_numpy().copy()
            pairs = zip(was.take(pa.array(rows)).to_pylist(), now.take(pa.array(rows)).to_pylist(), strict=True)
            alike[rows] = [json.loads(one) == json.loads(other) for one, other in pairs]
            equal = pa.array(alike)
        same = pc.and_(same, pc.or_(equal, pc.and_(pc.is_null(was), pc.is_null(now))))
    changed = common.filter(pc.invert(same))["key"].to_pylist()
    return {"added": added, "removed": removed, "changed": changed}


def _is_image(entry: storage.Entry) -> bool:
    return (is_photo_name(entry.key) or entry.hides) and not is_hidden(entry.key)


def is_hidden(key: str) -> bool:
    """Whether a part of a name begins with a dot; `..` hides nothing, and is refused."""
    return any(part.startswith(".") and part.strip(".") for part in PurePosixPath(key).parts)


def _keys(images: list[storage.Entry]) -> list[str]:
    """The entries' keys. A name that is not UTF-8 cannot be stored: its bytes are written as \\xNN, and reading the
    file under that name fails, so that it has a row with an error.
    """
    keys = [storable(entry.key) for entry in images]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ConfigError(f"the archive has two files of the name {twice[0]!r}, one of them not UTF-8; rename that one")
    return keys
