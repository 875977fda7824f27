"""The write stage: tasks that write restored images, a file each or as a shard, and then their unit's commit marker."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any

import pyarrow as pa

from flashray.errors import ImageError
from flashray.pipeline.commit import write_commit
from flashray.pipeline.quarantine import watched
from flashray.pipeline.worker_settings import WorkerSettings

WRITTEN = pa.schema([("unit_id", pa.string()), ("images", pa.int64())])
_WRITERS = 8
_NAME_REFUSED = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)  # too long, or characters that exFAT or a share lacks
_LARGE = 2_000_000  # pixels, or bytes of a file; larger images are encoded one after the other to save memory


def write(table: pa.Table, work: WorkerSettings, quarantine: Any) -> pa.Table:
    """Every restored image of a unit in one put each, or all in one; then the unit's commit marker.

    An image that kills the process while it is encoded is given up, as in the other stages.
    """
    from flashray.pipeline.encoding import encode_output  # torch, which the load tasks do without
    from flashray.pipeline.unit_writers import FileWriter, ShardWriter

    (unit,) = table.to_pylist()
    io, one_at_a_time = work.config.io, Lock()
    writer = FileWriter(work.config) if io.shards == "none" else ShardWriter(work.config, unit["unit_id"])

    def put(row: dict[str, Any], image: dict[str, Any] | None) -> None:
        if image is None:
            return
        large = max(image["height"] * image["width"], len(image["data"])) > _LARGE
        try:
            with one_at_a_time if large else nullcontext():
                encoded = encode_output(image, io, _provenance(row, work))
            writer.add(row, image, encoded)
        except ImageError as error:
            row |= {"status": "error", "error": f"it cannot be written: {error}"}
        except OSError as error:
            if error.errno not in _NAME_REFUSED:
                raise
            row |= {"status": "error", "error": f"the output's filesystem does not take its name: {error.strerror}"}
        else:
            row |= {"unchanged": encoded.unchanged, "lost": encoded.lost, "warnings": encoded.warnings}
            row |= {"sha256": hashlib.sha256(encoded.data).hexdigest(), "size": len(encoded.data)}

    rows, images = unit["rows"], unit["images"]
    with watched(quarantine, f"writing {unit['unit_id']}") as watch, ThreadPoolExecutor(_WRITERS) as writers:
        for indices, given_up in watch.parts([row["key"] for row in rows]):
            if given_up is None:
                list(writers.map(put, (rows[i] for i in indices), (images[i] for i in indices)))
            for i in indices if given_up else ():
                if images[i] is not None:
                    rows[i] |= {"status": "error", "error": str(given_up)}
    writer.close()
    write_commit(io.output, unit["unit_id"], unit["rows"])
    return pa.Table.from_pylist([{"unit_id": unit["unit_id"], "images": len(rows)}], schema=WRITTEN)


def _provenance(row: Mapping[str, Any], work: WorkerSettings) -> dict[str, str] | None:
    """The note in its metadata of how the image of a commit row was made; None where the run writes no notes.

    The recipe is named by its parts as the shipped ones are: degradation, start, solver. The note holds no date, so
    that the same image gets the same bytes again.
    """
    if not work.config.io.provenance:
        return None
    recipe = work.config.recipe
    note = {"recipe": f"{recipe.degradation.name}_{recipe.start.mode}_{recipe.solver.name}", "nfe": f"{row['nfe']:g}"}
    if row["sigma_hat"] is not None:
        note["sigma_hat"] = f"{row['sigma_hat']:.4f}"
    return note | ({"run": work.run_id} if work.run_id else {})
