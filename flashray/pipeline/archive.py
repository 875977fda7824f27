"""The archive's listing: which images there are, and what a manifest says of them."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from flashray import storage
from flashray.degradations import Degradation, make_degradation
from flashray.errors import ConfigError
from flashray.images import IMAGE_SUFFIXES, is_image_name
from flashray.pipeline.run_config import ReconstructConfig

LISTING = pa.schema(
    [
        ("index", pa.int64()),  # place in the sorted listing
        ("key", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("given", pa.string()),  # the manifest's parameters, or the place of its mask, as JSON; null without
        ("noise_std", pa.float64()),  # the manifest's, null without
        ("mask_size", pa.int64()),  # of the mask's file, null without
    ]
)
_COMPARED = ["size", "given", "noise_std", "mask_size"]  # what tells an image from another of the same key
log = logging.getLogger(__name__)


def list_archive(config: ReconstructConfig) -> pa.Table:
    """The images below the archive, sorted by key, cut to `limit`: a table of `LISTING`.

    Hidden files and files of other suffixes are left out, and counted in a log line.

    Raises:
        ConfigError: when the archive is missing or holds no image, or the manifest does not fit.
    """
    archive = config.archive
    try:
        if not storage.exists(archive):
            raise ConfigError(f"archive {archive} does not exist")
        entries = storage.list_files(archive)
    except OSError as error:
        raise ConfigError(f"archive {archive} cannot be listed: {error}") from error
    images = [entry for entry in entries if _is_image(entry.key)]
    if not images:
        raise ConfigError(
            f"archive {archive} holds no images ({len(entries)} files; known: {', '.join(IMAGE_SUFFIXES)})"
        )
    if len(images) < len(entries):
        log.warning("%d files of the archive are no images by their names and are left out", len(entries) - len(images))
    images = images[: config.limit]
    # a name that is not UTF-8 cannot be written down; its row fails when it is read, and says which it was
    keys = [entry.key.encode(errors="surrogateescape").decode(errors="replace") for entry in images]
    table = pa.table(
        {
            "index": pa.array(range(len(keys)), pa.int64()),
            "key": pa.array(keys, pa.string()),
            "uri": pa.array([storage.join(archive, key) for key in keys], pa.string()),
            "size": pa.array([entry.size for entry in images], pa.int64()),
        }
    )
    for name, values in _manifest_columns(config, table["key"]).items():
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
    place = pc.index_in(common["key"], before)
    same = pa.array([True] * len(common))
    for name in _COMPARED:
        was, now = old[name].take(place), common[name]
        equal = pc.fill_null(pc.equal(was, now), False)
        same = pc.and_(same, pc.or_(equal, pc.and_(pc.is_null(was), pc.is_null(now))))
    changed = common.filter(pc.invert(same))["key"].to_pylist()
    return {"added": added, "removed": removed, "changed": changed}


def _is_image(key: str) -> bool:
    path = PurePosixPath(key)
    return is_image_name(path.name) and not any(part.startswith(".") for part in path.parts)


def _manifest_columns(config: ReconstructConfig, keys: pa.ChunkedArray) -> dict[str, pa.Array]:
    """given (as JSON), noise_std and mask_size of each key, null where the manifest says nothing."""
    degradation = make_degradation(config.degradation.name, config.degradation.settings)
    observed = config.measurement == "observed"
    needed = degradation.parameter_names if observed and degradation.fixed_parameters() is None else ()
    or_mask = " (or mask, the place of an image that is white where pixels are known)" if degradation.takes_mask else ""
    low, high = config.degradation.noise_range
    if observed and low < high:
        needed = (*needed, "noise_std")
    if config.manifest is None:
        if needed:
            raise ConfigError(
                f"the degradation leaves {', '.join(needed)}{or_mask} open, and observed measurements need each "
                "image's own: name a --manifest (CSV or Parquet) with a column key and these, or fix them in the recipe"
            )
        return {name: pa.nulls(len(keys)) for name in ("given", "noise_std", "mask_size")}
    manifest = _read_manifest(config.manifest)
    masked = degradation.takes_mask and "mask" in manifest.column_names
    if masked:
        needed = tuple(name for name in needed if name not in degradation.parameter_names)
    missing = [name for name in ("key", *needed) if name not in manifest.column_names]
    if missing:
        raise ConfigError(
            f"manifest {config.manifest} has no column {', '.join(missing)}{or_mask if needed else ''}; "
            f"it has {manifest.column_names}"
        )
    if pc.count_distinct(manifest["key"]).as_py() < len(manifest):
        raise ConfigError(f"manifest {config.manifest} names a key more than once")
    _check_values(config.manifest, manifest, degradation)
    place = pc.index_in(keys, manifest["key"])
    mask_size = pa.nulls(len(keys))
    given: list[str | None]
    if masked:
        named = manifest["mask"].cast(pa.string()).take(place).to_pylist()
        masks = [_beside(config.manifest, mask) if mask else None for mask in named]
        given = [json.dumps({"mask": mask}) for mask in masks]
        mask_size = _mask_sizes(masks)
        names = ["mask"]
    else:
        names = [name for name in degradation.parameter_names if name in manifest.column_names]
        rows = zip(*(manifest[name].take(place).to_pylist() for name in names), strict=True)
        given = [None if None in row else json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    noise = manifest["noise_std"].take(place) if "noise_std" in manifest.column_names else pa.nulls(len(keys))
    return {
        "given": pa.array(given if names else [None] * len(keys), pa.string()),
        "noise_std": noise,
        "mask_size": mask_size,
    }


def _mask_sizes(masks: list[str | None]) -> pa.Array:
    """Bytes of the masks that are named; null where none is, or none is there."""
    folders: list[str] = []
    for folder in sorted({os.path.dirname(mask) for mask in masks if mask}):
        if not folders or not f"{folder}/".startswith(f"{folders[-1]}/"):  # a folder's listing has those below it
            folders.append(folder)
    sizes: dict[str, int] = {}
    for folder in folders:
        try:
            sizes |= {storage.join(folder, entry.key): entry.size for entry in storage.list_files(folder)}
        except OSError as error:
            raise ConfigError(f"masks in {folder} cannot be listed: {error}") from error
    return pa.array([sizes.get(mask) if mask else None for mask in masks], pa.int64())


def _read_manifest(uri: str) -> pa.Table:
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ConfigError(f"manifest {uri} cannot be read: {error}") from error
    try:
        if uri.lower().endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
        else:
            text = pyarrow.csv.ConvertOptions(column_types={"key": pa.string()}, strings_can_be_null=False)
            table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=text)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"manifest {uri} is neither Parquet nor CSV with a header line: {error}") from error
    return table


def _beside(manifest: str, place: str) -> str:
    """A place that a manifest names: absolute, or relative to the manifest's folder."""
    return storage.normalise(place if storage.is_absolute(place) else storage.join(os.path.dirname(manifest), place))


def _check_values(uri: str, manifest: pa.Table, degradation: Degradation) -> None:
    for name in (*degradation.parameter_names, "noise_std"):
        if name not in manifest.column_names:
            continue
        try:
            values = [v for v in manifest[name].cast(pa.float64()).to_pylist() if v is not None]
        except pa.ArrowInvalid as error:
            raise ConfigError(f"manifest {uri}: column {name} is not a column of numbers: {error}") from error
        if name == "noise_std" and not all(0 <= value < math.inf for value in values):
            raise ConfigError(f"manifest {uri}: noise_std must be ≥ 0 and finite")
    names = degradation.parameter_names
    if names and set(names) <= set(manifest.column_names):
        rows = zip(*(manifest[name].cast(pa.float64()).to_pylist() for name in names), strict=True)
        whole = [row for row in rows if None not in row]
        try:
            degradation.check_parameters(dict(zip(names, torch.tensor(whole).reshape(-1, len(names)).T, strict=True)))
        except ConfigError as error:
            raise ConfigError(f"manifest {uri}: {error}") from error
