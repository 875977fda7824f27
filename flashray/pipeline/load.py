"""The load stage of both passes: tasks that read files, so that no actor waits for a disk.

Images travel as the files' own bytes; the actors decode them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from flashray import storage
from flashray.pipeline.quarantine import watched
from flashray.pipeline.worker_settings import WorkerSettings

READERS = 8  # concurrent reads of one load task


@dataclass(frozen=True)
class Loaded:
    """A file's bytes, or None with an `error`."""

    data: bytes | None = None
    error: str | None = None


def load(table: pa.Table, work: WorkerSettings, board: Any) -> pa.Table:
    """Add to one row (a unit, or a chunk of the plan pass) the lists data, mask_data and error of its images.

    The row has the lists key and uri, and each image's parameters in `given` or `parameters`; a chunk of the plan pass
    also `refused`. If it has a list
    reference_uri, it also gets `reference_data`, null where a reference cannot be read.
    """
    wanted = ("unit_id", "uri", "reference_uri", "given", "parameters", "refused")
    (row,) = table.select([name for name in wanted if name in table.column_names]).to_pylist()
    masks = [mask_uri_of(given) for given in row.get("given", row.get("parameters"))]
    refused = row.get("refused") or [None] * len(row["uri"])
    images: list[Loaded] = []
    mask_data: list[bytes | None] = []
    references: list[bytes | None] = []
    with watched(board, f"reading the images of {row['unit_id']}") as watch:
        for indices, given_up in watch.parts(row["uri"]):
            if given_up:
                images += [Loaded(error=str(given_up))] * len(indices)
                mask_data += [None] * len(indices)
                references += [None] * len(indices)
                continue
            read = read_images([row["uri"][i] for i in indices], [refused[i] for i in indices])
            read_masks = read_files([masks[i] for i in indices])
            images += [with_mask(one, mask, masks[i]) for one, mask, i in zip(read, read_masks, indices, strict=True)]
            mask_data += [one.data for one in read_masks]
            if "reference_uri" in row:
                references += [one.data for one in read_files([row["reference_uri"][i] for i in indices])]
    columns: dict[str, tuple[list[Any], pa.DataType]] = {
        "data": ([one.data for one in images], pa.large_binary()),
        "mask_data": (mask_data, pa.large_binary()),
        "error": ([one.error for one in images], pa.string()),
    }
    if "reference_uri" in row:
        columns["reference_data"] = (references, pa.large_binary())
    for name, (values, kind) in columns.items():
        table = table.append_column(name, pa.array([values], pa.list_(kind)))
    return table


def read_images(uris: Sequence[str], refused: Sequence[str | None]) -> list[Loaded]:
    """The image files of a unit or a chunk; a refused one is not read, and the reason is its error."""
    read = read_files([uri if why is None else None for uri, why in zip(uris, refused, strict=True)])
    return [one if why is None else Loaded(error=why) for one, why in zip(read, refused, strict=True)]


def read_files(uris: Sequence[str | None]) -> list[Loaded]:
    """Each file, several at once; a failure becomes the file's error. None reads nothing."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read_file, uris))


def read_file(uri: str | None) -> Loaded:
    """One file. A store that does not answer raises `storage.Unavailable`: that is not a failure of the file."""
    if uri is None:
        return Loaded()
    try:
        storage.refuse_special(uri)
    except FileNotFoundError:
        pass  # said below
    except OSError as error:
        return Loaded(error=f"it cannot be read: {error}")
    try:
        return Loaded(storage.read_bytes(uri))
    except FileNotFoundError:
        return Loaded(error="the file is no longer there, or its name is not valid UTF-8")
    except storage.Unavailable:
        raise
    except Exception as error:  # no bad file may end the job
        return Loaded(error=f"it cannot be read: {type(error).__name__}: {error}")


def with_mask(image: Loaded, mask: Loaded, mask_uri: str | None) -> Loaded:
    """The image; an error where its mask cannot be read."""
    if image.error is None and mask.error is not None:
        return Loaded(error=f"its mask {mask_uri} cannot be read: {mask.error}")
    return image


def mask_uri_of(given: str | None) -> str | None:
    """The URI of an image's mask, from the parameters in a manifest or plan."""
    return json.loads(given or "{}").get("mask")
