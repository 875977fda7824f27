"""The names of an archive's restored images, taken together: the one map from keys to outputs, loose or in shards."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from flashray import storage
from flashray.errors import ConfigError
from flashray.images import IMAGE_SUFFIXES, OutputFormat, is_photo_name, output_name
from flashray.pipeline.run_config import IoConfig, Shards
from flashray.pipeline.run_folder import PAGE, RUN_FOLDER, SAMPLES
from flashray.shards.place import Place


@dataclass(frozen=True)
class Layout:
    """Which file below the output a restored image lies in: one of its own, or the shard of its unit."""

    output: str
    format: OutputFormat = "same"
    shards: Shards = "none"

    @classmethod
    def of(cls, io: IoConfig) -> Layout:
        return cls(io.output, io.format, io.shards)

    @classmethod
    def of_record(cls, output: str, record: Mapping[str, Any]) -> Layout:
        """Of the run with this run.json."""
        io = record["config"]["io"]
        return cls(output, io["format"], io.get("shards", "none"))

    @property
    def sharded(self) -> bool:
        return self.shards != "none"

    def file(self, row: Mapping[str, Any]) -> str:
        """The file's name below the output, for a row with key and unit_id."""
        return f"{row['unit_id']}.{self.shards}" if self.sharded else output_name(row["key"], self.format)

    def files(self, *tables: pa.Table) -> set[str]:
        """The names of the files of all rows, all below the output; a row without a unit has none in shards."""
        if not self.sharded:
            keys = (key for table in tables for key in table["key"].to_pylist())
            return {output_name(key, self.format) for key in keys if is_relative_name(key)}
        units = {unit for table in tables for unit in table["unit_id"].unique().to_pylist()}
        return {self.file({"unit_id": unit}) for unit in units - {None}}

    def promised(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each file that a commit row names, as a `commit.FILE`; in shards, the shard that the image lies in."""
        size, sha256 = ("shard_size", "shard_sha256") if self.sharded else ("size", "sha256")
        return [{"name": self.file(row), "size": row[size], "sha256": row[sha256]}, *(row["samples"] or ())]

    def place(self, row: Mapping[str, Any]) -> Place:
        """Where the restored image of a commit row lies."""
        uri = storage.join(self.output, self.file(row))
        return Place(uri, row["offset"], row["size"] if self.shards == "tar" else None)


def refuse_without_suffix(keys: Sequence[str], io: IoConfig) -> None:
    """Raise ConfigError where tars are written and a member would not be known for an image by its name."""
    if io.shards != "tar":
        return
    for key in keys:
        if not is_photo_name(output_name(key, io.format)):
            raise ConfigError(
                f"{key!r} has no image's suffix ({', '.join(IMAGE_SUFFIXES)}), by which readers of tars know images: "
                "give a --format, or --shards parquet"
            )


def output_names(keys: Sequence[str], format: OutputFormat) -> dict[str, str]:
    """Name of a restored image → its key; ConfigError where two keys map to one name."""
    key_of: dict[str, str] = {}
    for key in keys:
        name = output_name(key, format)
        if name in key_of:
            raise ConfigError(
                f"{key_of[name]!r} and {key!r} would be written to one file, {name!r}; "
                "rename one of them, or leave out --format"
            )
        key_of[name] = key
    return key_of


def sample_names(name: str, samples: int) -> list[str]:
    """The files beside the restored image of this name, below the output: samples 1 … and the map of their spread.

    None where there is one sample. An image's files have a folder of their own, so they collide where names do.
    """
    if samples == 1:
        return []
    suffix = posixpath.splitext(name)[1]
    return [f"{SAMPLES}/{name}/{file}" for file in (*(f"{n}{suffix}" for n in range(1, samples)), "spread.png")]


def image_of(name: str) -> str:
    """The name of the restored image that a file below the output is, or is a sample or the spread of."""
    return posixpath.dirname(name.removeprefix(f"{SAMPLES}/")) if name.startswith(f"{SAMPLES}/") else name


def without_place(keys: Sequence[str], format: OutputFormat) -> dict[str, str]:
    """The keys whose restored images have no place below the output, and why each cannot be written.

    It would lie where others need a folder, or its name has parts like `..`, as objects of a store may. ConfigError as
    `output_names`.
    """
    key_of = output_names(keys, format)
    folders: set[str] = set()
    for name in key_of:
        folder = posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    led_out = {
        key: f"{key!r} is no name below the output; rename the object" for key in keys if not is_relative_name(key)
    }
    led_out |= {
        key: f"{key!r} would lie among the run's own records ({RUN_FOLDER}, {storage.TEMPORARY}…); rename the object"
        for key in keys
        if (RUN_FOLDER in key or storage.TEMPORARY in key) and _is_own(key)  # the first is quick, and there are many
    }
    return led_out | {
        key_of[name]: f"its output {name!r} would lie where other images of the archive need a folder; rename it, "
        "or leave out --format"
        for name in key_of.keys() & folders
    }


def refuse_taken(keys: Sequence[str], format: OutputFormat, copied: Sequence[str] = ()) -> None:
    """Raise ConfigError where an image of these keys, or a file of the `copied`, would lie where the run's page is, or
    one of each in one place.
    """
    if copied and (both := {*copied}.intersection(output_name(key, format) for key in keys)):
        raise ConfigError(
            f"an image and another file of the archive, both {min(both)!r}, would be written to one file; rename it, "
            "or leave out --copy-others"
        )
    names = ((output_name(key, format), "") for key in keys)
    for name, other_remedy in chain(names, ((name, ", or leave out --copy-others") for name in copied)):
        if name.split("/")[0] == PAGE:
            raise ConfigError(
                f"{name!r} of the archive would be written where the run's page is, {PAGE}; rename it{other_remedy}"
            )


def _is_own(key: str) -> bool:
    return RUN_FOLDER in key.split("/") or posixpath.basename(key).startswith(storage.TEMPORARY)


def is_relative_name(key: str) -> bool:
    """Whether a key, joined to a folder, is a file below it and no other key's: no part is empty, `.` or `..`."""
    return not {"", ".", ".."} & set(key.split("/")) and "\0" not in key
