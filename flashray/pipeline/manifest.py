"""The manifest: for each image the operator's parameters or a mask, and the noise."""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from flashray import storage
from flashray.degradations import Degradation
from flashray.errors import ConfigError
from flashray.pipeline.run_config import RunConfig
from flashray.shards.shard_index import doubled
from flashray.shown import first_of

_READERS = 16
log = logging.getLogger(__name__)


def manifest_columns(
    config: RunConfig, keys: pa.ChunkedArray, predicted: Collection[str] = (), carried: pa.Table | None = None
) -> dict[str, pa.Array]:
    """given (as JSON), noise_std and mask_size of each key, null where the manifest has no value.

    `predicted` names the numbers that the severity encoder estimates where all that nobody gives are among them.
    `carried` is a table with a column key and the numbers that the shards themselves give; it takes the place of a
    manifest where there is none.
    """
    degradation = config.recipe.degradation.make()
    observed = not config.io.simulated
    needed = degradation.parameter_names if observed and degradation.fixed_parameters() is None else ()
    or_mask = " (or mask, the path of an image that is white where pixels are known)" if degradation.takes_mask else ""
    low, high = config.recipe.degradation.noise_range
    if observed and low < high:
        needed = (*needed, "noise_std")
    if config.io.manifest is not None:
        where, manifest = f"manifest {config.io.manifest}", _read_manifest(config.io.manifest)
    elif carried is not None and {*degradation.parameter_names, "noise_std"} & {*carried.column_names}:
        where, manifest = f"archive {config.io.archive}", carried
    else:
        if not set(needed) <= set(predicted):
            raise ConfigError(
                f"the recipe leaves {', '.join(needed)}{or_mask} open, and observed measurements need a value for each "
                "image: give a --manifest (CSV or Parquet) with a column key and these, or fix them in the recipe"
            )
        return {name: pa.nulls(len(keys)) for name in ("given", "noise_std", "mask_size")}
    masked = degradation.takes_mask and "mask" in manifest.column_names
    if masked:
        needed = tuple(name for name in needed if name not in degradation.parameter_names)
    missing = [name for name in ("key", *needed) if name not in manifest.column_names]
    if not set(missing) <= set(predicted):
        raise ConfigError(
            f"{where} has no column {', '.join(missing)}{or_mask if needed else ''}; it has {manifest.column_names}"
        )
    used = ("mask",) if masked else degradation.parameter_names
    manifest = _plain(where, manifest, (*used, "noise_std"))
    _check_values(where, manifest, degradation)
    row_of_key = pc.index_in(keys, manifest["key"])
    if config.policy.limit is None:  # which takes a part of the archive
        _compare_keys(where, keys, manifest["key"])
    mask_size = pa.nulls(len(keys))
    given: list[str | None]
    if masked:
        named = manifest["mask"].take(row_of_key).to_pylist()
        masks = [_beside(config.io.manifest or "", mask) if mask else None for mask in named]
        given = [json.dumps({"mask": mask}) for mask in masks]
        mask_size = _mask_sizes(masks)
        names = ["mask"]
    else:
        names = [name for name in degradation.parameter_names if name in manifest.column_names]
        rows = zip(*(manifest[name].take(row_of_key).to_pylist() for name in names), strict=True)
        given = [None if None in row else json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    noise = manifest["noise_std"].take(row_of_key) if "noise_std" in manifest.column_names else pa.nulls(len(keys))
    return {
        "given": pa.array(given if names else [None] * len(keys), pa.string()),
        "noise_std": noise,
        "mask_size": mask_size,
    }


def _compare_keys(where: str, keys: pa.ChunkedArray, named: pa.ChunkedArray) -> None:
    """Warn of images without a row and of rows without an image; ConfigError where no row names an image."""
    lacking = keys.filter(pc.invert(pc.is_in(keys, named)))
    strange = named.filter(pc.invert(pc.is_in(named, keys)))
    if len(lacking) == len(keys) and len(strange):
        raise ConfigError(
            f"{where} names no image of the archive: its first key is {strange[0].as_py()!r}, and the archive's first "
            f"{keys[0].as_py()!r}; keys are paths below the archive"
        )
    if len(lacking):
        log.warning("%s has no row for %d images (%s)", where, len(lacking), first_of(lacking.slice(0, 4).to_pylist()))
    if len(strange):
        what = first_of(strange.slice(0, 4).to_pylist())
        log.warning("%s: %d rows name no image of the archive (%s)", where, len(strange), what)


def _mask_sizes(masks: list[str | None]) -> pa.Array:
    """Sizes in bytes of the masks that are named; null where none is named or the file is missing."""

    def size(mask: str | None) -> int | None:
        return storage.file_size(mask) if mask else None

    try:
        with ThreadPoolExecutor(_READERS) as readers:
            return pa.array(list(readers.map(size, masks)), pa.int64())
    except OSError as error:
        raise ConfigError(f"the masks that the manifest names cannot be read: {error}") from error


def _read_manifest(uri: str) -> pa.Table:
    try:
        data = storage.read_bytes(uri)
    except OSError as error:
        raise ConfigError(f"manifest {uri} cannot be read: {error}") from error
    try:
        if uri.lower().endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            table.validate(full=True)
        else:
            types = dict.fromkeys(("key", "mask"), pa.string())
            text = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=False)
            table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=text)
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise ConfigError(f"manifest {uri} is neither Parquet nor CSV with a header line: {error}") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"manifest {uri} has more than one column {twice[0]!r}")
    return table


def _plain(where: str, manifest: pa.Table, names: Sequence[str]) -> pa.Table:
    """The columns key and `names` as text and numbers, whatever a table library made of them.

    ConfigError for keys that are no text, missing or doubled, and for columns that are no numbers or paths.
    """
    kind = manifest.schema.field("key").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind) or _is_text(kind)):
        raise ConfigError(f"{where}: column key is of type {kind}; give the images' paths below the archive")
    columns = {"key": _cast(where, manifest, "key", pa.string())}
    lacking = pc.fill_null(pc.equal(columns["key"], ""), True).to_pylist()
    if any(lacking):
        raise ConfigError(f"{where}: row {lacking.index(True) + 1} has no key")
    if pc.count_distinct(columns["key"]).as_py() < len(manifest):
        twice = doubled(columns["key"])
        raise ConfigError(f"{where} names {len(twice)} keys more than once ({first_of(twice)})")
    for name in names:
        if name == "mask":
            columns[name] = _cast(where, manifest, name, pa.string())
        elif name in manifest.column_names:
            whole = pa.types.is_integer(manifest.schema.field(name).type) and name != "noise_std"
            columns[name] = _cast(where, manifest, name, pa.int64() if whole else pa.float64())
    return pa.table(columns)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary))


def _cast(where: str, manifest: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        column = manifest[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_boolean(column.type):
            raise pa.ArrowInvalid("it holds true and false")
        return column.cast(kind)
    except pa.ArrowException as error:
        what = "numbers" if kind != pa.string() else "text"
        raise ConfigError(f"{where}: column {name} is not a column of {what}: {error}") from error


def _beside(manifest: str, path: str) -> str:
    """The URI of a path that a manifest names: absolute, or relative to the manifest's folder."""
    beside = path if storage.is_absolute(path) else storage.join(os.path.dirname(manifest), path)
    return storage.given(beside, f"manifest {manifest}: the mask")


def _check_values(where: str, manifest: pa.Table, degradation: Degradation) -> None:
    for name in (*degradation.parameter_names, "noise_std"):
        if name not in manifest.column_names:
            continue
        values = manifest[name].cast(pa.float64(), safe=False).to_pylist()
        wrong = [n for n, v in enumerate(values) if v is not None and not math.isfinite(v)]
        wrong += [n for n, v in enumerate(values) if name == "noise_std" and v is not None and v < 0]
        if wrong:
            n, bound = wrong[0], "≥ 0 and finite" if name == "noise_std" else "finite"
            raise ConfigError(f"{where}: key {manifest['key'][n]}: {name} must be {bound}, and is {values[n]:g}")
    names = degradation.parameter_names
    if names and set(names) <= set(manifest.column_names):
        rows = zip(*(manifest[name].cast(pa.float64(), safe=False).to_pylist() for name in names), strict=True)
        whole = [(n, row) for n, row in enumerate(rows) if None not in row]
        table = torch.tensor([row for _, row in whole]).reshape(-1, len(names))
        _check_parameters(where, manifest["key"], degradation, [n for n, _ in whole], table)


def _check_parameters(
    where: str, keys: pa.ChunkedArray, degradation: Degradation, places: Sequence[int], table_NP: Tensor
) -> None:
    """ConfigError with the key of the first row whose parameters are wrong."""
    names = degradation.parameter_names

    def check(rows: slice) -> None:
        degradation.check_parameters(dict(zip(names, table_NP[rows].T, strict=True)))

    try:
        check(slice(None))
    except ConfigError:
        for n, place in enumerate(places):
            try:
                check(slice(n, n + 1))
            except ConfigError as error:
                raise ConfigError(f"{where}: key {keys[place]}: {error}") from error
        raise
