"""The write stage: tasks that write restored images, and then the commit marker of their unit."""

from __future__ import annotations

import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from flashray import storage
from flashray.pipeline.commit import write_commit
from flashray.pipeline.outputs import encode, output_name
from flashray.pipeline.worker_settings import WorkerSettings

WRITTEN = pa.schema([("unit_id", pa.string()), ("images", pa.int64()), ("failed", pa.int64()), ("nfe", pa.int64())])
_WRITERS = 8


def write(table: pa.Table, work: WorkerSettings) -> pa.Table:
    """Every restored image of a unit in one put each, then the unit's commit marker."""
    (unit,) = table.to_pylist()
    io = work.config.io

    def put(row: dict[str, Any], image: dict[str, Any] | None) -> None:
        if image is None:
            return
        name = output_name(row["key"], io.format)
        pixels = np.frombuffer(image["pixels"], np.uint8).reshape(image["height"], image["width"], 3)
        data = encode(pixels, name)
        try:
            storage.put_bytes(storage.join(io.output, name), data)
            row["sha256"] = hashlib.sha256(data).hexdigest()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            row |= {"status": "error", "error": f"its name is too long for the output's filesystem: {error.strerror}"}

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(put, unit["rows"], unit["images"]))
    write_commit(io.output, unit["unit_id"], unit["rows"])
    failed = sum(row["status"] != "ok" for row in unit["rows"])
    nfe = sum(row["nfe"] or 0 for row in unit["rows"])
    written = {"unit_id": unit["unit_id"], "images": len(unit["rows"]), "failed": failed, "nfe": nfe}
    return pa.Table.from_pylist([written], schema=WRITTEN)
