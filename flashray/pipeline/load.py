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
from flashray.shards.place import Place, read_places

READERS = 8  # concurrent reads of one load task


@dataclass(frozen=True)
class Loaded:
    """A file's bytes, or None with an `error`."""

    data: bytes | None = None
    error: str | None = None


def load(table: pa.Table, work: WorkerSettings, quarantine: Any) -> pa.Table:
    """Add to one row (a unit, or a chunk of the plan pass) the lists data, mask_data and error of its images.

    The row has the lists key, uri, offset and length (of `Place`), and each image's parameters in `given` or
    `parameters`; a chunk of the plan pass also `refused`. If it has a list reference_uri, it also gets
    `reference_data`, null where a reference cannot be read.
    """
    wanted = ("unit_id", "key", "uri", "offset", "length", "reference_uri", "given", "parameters", "refused")
    (row,) = table.select([name for name in wanted if name in table.column_names]).to_pylist()
    places = [Place(*one) for one in zip(row["uri"], row["offset"], row["length"], strict=True)]
    masks = [mask_uri_of(given) for given in row.get("given", row.get("parameters"))]
    refused = row.get("refused") or [None] * len(row["uri"])
    images: list[Loaded] = []
    mask_data: list[bytes | None] = []
    references: list[bytes | None] = []
    with watched(quarantine, f"reading the images of {row['unit_id']}") as watch:
        for indices, given_up in watch.parts(row["key"]):
            if given_up:
                images += [Loaded(error=str(given_up))] * len(indices)
                mask_data += [None] * len(indices)
                references += [None] * len(indices)
                continue
            read = read_images([places[i] for i in indices], [refused[i] for i in indices])
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


def read_images(places: Sequence[Place], refused: Sequence[str | None]) -> list[Loaded]:
    """The images of a unit or a chunk; a refused one is not read, and the reason is its error."""
    loaded = [Loaded(error=why) for why in refused]
    sound = [i for i, why in enumerate(refused) if why is None]
    together: dict[Any, list[int]] = {}  # rows of one Parquet file, because a row group is read as a whole
    for i in sound:
        together.setdefault(places[i].uri if places[i].is_row else i, []).append(i)
    with ThreadPoolExecutor(READERS) as readers:
        parts = readers.map(lambda indices: read_together([places[i] for i in indices]), together.values())
        for indices, found in zip(together.values(), parts, strict=True):
            for i, one in zip(indices, found, strict=True):
                loaded[i] = one
    return loaded


def read_files(uris: Sequence[str | None]) -> list[Loaded]:
    """Each file, several at once; a failure becomes the file's error. None reads nothing."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read_file, uris))


def read_file(uri: str | None) -> Loaded:
    """One file. A store that does not answer raises `storage.Unavailable`: that is not a failure of the file."""
    return Loaded() if uri is None else read_together([Place(uri)])[0]


def read_together(places: Sequence[Place]) -> list[Loaded]:
    """Images that lie in one file; errors as of `read_file`, and one image's do not become the others'."""
    try:
        storage.refuse_special(places[0].uri)
    except FileNotFoundError:
        pass  # said below
    except OSError as error:
        return [Loaded(error=f"it cannot be read: {error}")] * len(places)
    try:
        found = read_places(places)
    except FileNotFoundError:
        why = "the file is no longer there, or its name is not valid UTF-8"
    except storage.Unavailable:
        raise
    except Exception as error:  # no bad file may end the job
        if len(places) > 1:
            return [one for place in places for one in read_together([place])]
        why = f"it cannot be read: {type(error).__name__}: {error}"
    else:
        return [Loaded(data, None if data is not None else "its row of the shard holds no image") for data in found]
    return [Loaded(error=why)] * len(places)


def with_mask(image: Loaded, mask: Loaded, mask_uri: str | None) -> Loaded:
    """The image; an error where its mask cannot be read."""
    if image.error is None and mask.error is not None:
        return Loaded(error=f"its mask {mask_uri} cannot be read: {mask.error}")
    return image


def mask_uri_of(given: str | None) -> str | None:
    """The URI of an image's mask, from the parameters in a manifest or plan."""
    return json.loads(given or "{}").get("mask")
