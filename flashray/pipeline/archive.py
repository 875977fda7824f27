"""The archive's listing: which images there are."""

from __future__ import annotations

import hashlib
import logging
import posixpath
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError
from flashray.images import IMAGE_SUFFIXES, is_image_name
from flashray.pipeline.manifest import manifest_columns
from flashray.pipeline.outputs import refuse_clashes
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_folder import is_run_file

LISTING = pa.schema(
    [
        ("index", pa.int64()),  # position in the sorted listing
        ("key", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("given", pa.string()),  # the manifest's parameters, or the URI of its mask, as JSON; null without
        ("noise_std", pa.float64()),  # the manifest's, null without
        ("mask_size", pa.int64()),  # of the mask's file, null without
    ]
)
_COMPARED = ["size", "given", "noise_std", "mask_size"]  # an image with the same key and another of these has changed
log = logging.getLogger(__name__)


def list_archive(config: RunConfig) -> pa.Table:
    """The images below the archive, sorted by key, cut to `limit`: a table of `LISTING`.

    Hidden files and files of other suffixes are left out, and counted in a log line.

    Raises:
        ConfigError: when the archive is missing or holds no image, or the manifest does not fit.
    """
    archive = config.io.archive
    try:
        if not storage.exists(archive):
            raise ConfigError(f"archive {archive} does not exist")
        size = storage.file_size(archive)
        if size is None:
            entries = [entry for entry in storage.list_files(archive) if not is_run_file(entry.key)]
        else:
            entries = [storage.Entry(posixpath.basename(archive), size)]
    except OSError as error:
        raise ConfigError(f"archive {archive} cannot be listed: {error}") from error
    images = [entry for entry in entries if _is_image(entry.key)]
    if not images:
        raise ConfigError(
            f"archive {archive} holds no images ({len(entries)} files; known: {', '.join(IMAGE_SUFFIXES)})"
        )
    if len(images) < len(entries):
        log.warning("%d files of the archive do not have an image's name and are left out", len(entries) - len(images))
    images = images[: config.policy.limit]
    # a name that is not UTF-8 cannot be stored; its row fails when the file is read, and the error names it
    keys = [entry.key.encode(errors="surrogateescape").decode(errors="replace") for entry in images]
    refuse_clashes(keys, config.io.format)
    table = pa.table(
        {
            "index": pa.array(range(len(keys)), pa.int64()),
            "key": pa.array(keys, pa.string()),
            "uri": pa.array([archive if size else storage.join(archive, key) for key in keys], pa.string()),
            "size": pa.array([entry.size for entry in images], pa.int64()),
        }
    )
    for name, values in manifest_columns(config, table["key"]).items():
        table = table.append_column(name, values)
    return table.cast(LISTING)


def listing_hash(listing: pa.Table) -> str:
    """SHA-256 of the keys, sizes, given parameters and sizes of masks."""
    digest = hashlib.sha256()
    for batch in listing.select(["key", *_COMPARED]).to_batches(max_chunksize=100_000):
        lines = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        digest.update("".join(f"{line!r}\n" for line in lines).encode())
    return digest.hexdigest()


def differences(old: pa.Table, new: pa.Table) -> dict[str, list[str]]:
    """Keys `added`, `removed` and `changed` (also in parameters or mask) from one listing to another."""
    before, after = old["key"], new["key"]
    added = new.filter(pc.invert(pc.is_in(after, before)))["key"].to_pylist()
    removed = old.filter(pc.invert(pc.is_in(before, after)))["key"].to_pylist()
    common = new.filter(pc.is_in(after, before))
    row = pc.index_in(common["key"], before)
    same = pa.array([True] * len(common))
    for name in _COMPARED:
        was, now = old[name].take(row), common[name]
        equal = pc.fill_null(pc.equal(was, now), False)
        same = pc.and_(same, pc.or_(equal, pc.and_(pc.is_null(was), pc.is_null(now))))
    changed = common.filter(pc.invert(same))["key"].to_pylist()
    return {"added": added, "removed": removed, "changed": changed}


def _is_image(key: str) -> bool:
    path = PurePosixPath(key)
    return is_image_name(path.name) and not any(part.startswith(".") for part in path.parts)
