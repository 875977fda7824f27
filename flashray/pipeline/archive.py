"""The archive's listing: which images there are, and what else."""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError
from flashray.images import IMAGE_SUFFIXES, is_photo_name
from flashray.pipeline.manifest import manifest_columns
from flashray.pipeline.outputs import refuse_page, without_place
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_folder import run_files

LISTING = pa.schema(
    [
        ("index", pa.int64()),  # position in the sorted listing
        ("key", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("given", pa.string()),  # the manifest's parameters, or the URI of its mask, as JSON; null without
        ("noise_std", pa.float64()),  # the manifest's, null without
        ("mask_size", pa.int64()),  # of the mask's file, null without
        ("refused", pa.string()),  # why it is not restored, whatever its file holds; null for nothing
    ]
)
_APART = "it is a link to the run's own output"
_COMPARED = ["size", "given", "noise_std", "mask_size"]  # an image with the same key and another of these has changed
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
        images: a table of `LISTING`, sorted by key, cut to `limit`.
        others: files that are no images by their names, and hidden files.
        unreadable: folders that cannot be listed, each with the reason.
    """

    images: pa.Table
    others: list[storage.Entry] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_archive(config: RunConfig, predicted: Collection[str] = ()) -> Archive:
    """Everything below the archive.

    Pipes, devices, dead links and names that are not UTF-8 are images by their names like any other: reading them
    fails, and their rows say why. So do links that lead to the output, back to a folder above them, or nowhere,
    whatever their names are, because they may hide images.

    Args:
        predicted: what the severity encoder estimates of an image that the manifest gives nothing for.

    Raises:
        ConfigError: when the archive is missing or holds no image, a folder of it cannot be read, or the manifest does
            not fit.
    """
    archive = config.io.archive
    try:
        if not storage.exists(archive):
            raise ConfigError(f"archive {archive} does not exist")
        size = storage.file_size(archive)
        if size is None:
            listed = storage.list_everything(archive, apart=config.io.output)
            own = run_files([entry.key for entry in listed.entries])
            entries = [entry for entry in listed.entries if entry.key not in own]
        else:
            entries, listed = [storage.Entry(posixpath.basename(archive), size)], storage.Listing([], [])
    except OSError as error:
        raise ConfigError(f"archive {archive} cannot be listed: {error}") from error
    if listed.unreadable and not config.io.skip_unreadable:
        raise ConfigError(
            f"archive {archive} has folders that cannot be read: {', '.join(listed.unreadable)}; correct their "
            "permissions, or leave them out with --skip-unreadable"
        )
    images, others = [entry for entry in entries if _is_image(entry)], [e for e in entries if not _is_image(e)]
    if not images:
        raise ConfigError(
            f"archive {archive} holds no images ({len(entries)} files; known: {', '.join(IMAGE_SUFFIXES)})"
        )
    if others:
        log.warning(
            "%d files of the archive do not have an image's name and are %s",
            *(len(others), "copied as they are" if config.io.copy_others else "left out"),
        )
    images = images[: config.policy.limit]
    keys = _keys(images)
    refused = without_place(keys, config.io.format)
    refused |= {key: _APART for key, entry in zip(keys, images, strict=True) if entry.apart}
    refuse_page(keys, config.io.format, [entry.key for entry in others] if config.io.copy_others else [])
    table = pa.table(
        {
            "index": pa.array(range(len(keys)), pa.int64()),
            "key": pa.array(keys, pa.string()),
            "uri": pa.array([archive if size else storage.join(archive, key) for key in keys], pa.string()),
            "size": pa.array([entry.size for entry in images], pa.int64()),
            "refused": pa.array([refused.get(key) for key in keys], pa.string()),
        }
    )
    for name, values in manifest_columns(config, table["key"], predicted).items():
        table = table.append_column(name, values)
    return Archive(table.select(LISTING.names).cast(LISTING), others, listed.unreadable)


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


def _is_image(entry: storage.Entry) -> bool:
    path = PurePosixPath(entry.key)
    hidden = any(part.startswith(".") for part in path.parts)
    return (is_photo_name(path.name) or entry.hides) and not hidden


def _keys(images: list[storage.Entry]) -> list[str]:
    """The entries' keys. A name that is not UTF-8 cannot be stored: its bytes are written as \\xNN, and reading the
    file under that name fails, so that it has a row with an error.
    """
    keys = [entry.key.encode(errors="surrogateescape").decode(errors="backslashreplace") for entry in images]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ConfigError(f"the archive has two files of the name {twice[0]!r}, one of them not UTF-8; rename that one")
    return keys
