"""The manifest: for each image the operator's parameters or a mask, and the noise."""

from __future__ import annotations

import io
import json
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

from flashray import storage
from flashray.degradations import Degradation
from flashray.errors import ConfigError
from flashray.pipeline.run_config import RunConfig

_READERS = 16


def manifest_columns(config: RunConfig, keys: pa.ChunkedArray, predicted: Collection[str] = ()) -> dict[str, pa.Array]:
    """given (as JSON), noise_std and mask_size of each key, null where the manifest has no value.

    Args:
        predicted: numbers that the severity encoder estimates where all that nobody gives are among them.
    """
    degradation = config.recipe.degradation.make()
    observed = not config.io.simulated
    needed = degradation.parameter_names if observed and degradation.fixed_parameters() is None else ()
    or_mask = " (or mask, the path of an image that is white where pixels are known)" if degradation.takes_mask else ""
    low, high = config.recipe.degradation.noise_range
    if observed and low < high:
        needed = (*needed, "noise_std")
    if config.io.manifest is None:
        if not set(needed) <= set(predicted):
            raise ConfigError(
                f"the recipe leaves {', '.join(needed)}{or_mask} open, and observed measurements need a value for each "
                "image: give a --manifest (CSV or Parquet) with a column key and these, or fix them in the recipe"
            )
        return {name: pa.nulls(len(keys)) for name in ("given", "noise_std", "mask_size")}
    manifest = _read_manifest(config.io.manifest)
    masked = degradation.takes_mask and "mask" in manifest.column_names
    if masked:
        needed = tuple(name for name in needed if name not in degradation.parameter_names)
    missing = [name for name in ("key", *needed) if name not in manifest.column_names]
    if not set(missing) <= set(predicted):
        raise ConfigError(
            f"manifest {config.io.manifest} has no column {', '.join(missing)}{or_mask if needed else ''}; "
            f"it has {manifest.column_names}"
        )
    used = ("mask",) if masked else degradation.parameter_names
    manifest = _plain(config.io.manifest, manifest, (*used, "noise_std"))
    _check_values(config.io.manifest, manifest, degradation)
    row_of_key = pc.index_in(keys, manifest["key"])
    mask_size = pa.nulls(len(keys))
    given: list[str | None]
    if masked:
        named = manifest["mask"].take(row_of_key).to_pylist()
        masks = [_beside(config.io.manifest, mask) if mask else None for mask in named]
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
            text = pyarrow.csv.ConvertOptions(column_types={"key": pa.string()}, strings_can_be_null=False)
            table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=text)
        names = table.column_names
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise ConfigError(f"manifest {uri} is neither Parquet nor CSV with a header line: {error}") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"manifest {uri} has more than one column {twice[0]!r}")
    return table


def _plain(uri: str, manifest: pa.Table, names: Sequence[str]) -> pa.Table:
    """The columns key and `names` as text and numbers, whatever a table library made of them.

    Raises:
        ConfigError: for keys that are no text, missing or doubled, and for columns that are no numbers or paths.
    """
    kind = manifest.schema.field("key").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_null(kind) or _is_text(kind)):
        raise ConfigError(f"manifest {uri}: column key is of type {kind}; give the images' paths below the archive")
    columns = {"key": _cast(uri, manifest, "key", pa.string())}
    lacking = pc.fill_null(pc.equal(columns["key"], ""), True).to_pylist()
    if any(lacking):
        raise ConfigError(f"manifest {uri}: row {lacking.index(True) + 1} has no key")
    if pc.count_distinct(columns["key"]).as_py() < len(manifest):
        raise ConfigError(f"manifest {uri} names a key more than once")
    for name in names:
        if name == "mask":
            columns[name] = _cast(uri, manifest, name, pa.string())
        elif name in manifest.column_names:
            whole = pa.types.is_integer(manifest.schema.field(name).type) and name != "noise_std"
            columns[name] = _cast(uri, manifest, name, pa.int64() if whole else pa.float64())
    return pa.table(columns)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary))


def _cast(uri: str, manifest: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        column = manifest[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_boolean(column.type):
            raise pa.ArrowInvalid("it holds true and false")
        return column.cast(kind)
    except pa.ArrowException as error:
        what = "numbers" if kind != pa.string() else "text"
        raise ConfigError(f"manifest {uri}: column {name} is not a column of {what}: {error}") from error


def _beside(manifest: str, path: str) -> str:
    """The URI of a path that a manifest names: absolute, or relative to the manifest's folder."""
    beside = path if storage.is_absolute(path) else storage.join(os.path.dirname(manifest), path)
    return storage.given(beside, f"manifest {manifest}: the mask")


def _check_values(uri: str, manifest: pa.Table, degradation: Degradation) -> None:
    for name in (*degradation.parameter_names, "noise_std"):
        if name not in manifest.column_names:
            continue
        values = [v for v in manifest[name].cast(pa.float64(), safe=False).to_pylist() if v is not None]
        if name == "noise_std" and not all(0 <= value < math.inf for value in values):
            raise ConfigError(f"manifest {uri}: noise_std must be ≥ 0 and finite")
    names = degradation.parameter_names
    if names and set(names) <= set(manifest.column_names):
        rows = zip(*(manifest[name].cast(pa.float64(), safe=False).to_pylist() for name in names), strict=True)
        whole = [row for row in rows if None not in row]
        try:
            degradation.check_parameters(dict(zip(names, torch.tensor(whole).reshape(-1, len(names)).T, strict=True)))
        except ConfigError as error:
            raise ConfigError(f"manifest {uri}: {error}") from error
