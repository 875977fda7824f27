"""The write stage: plain tasks that put reconstructions in place, and then the commit marker of their unit."""

from __future__ import annotations

import errno
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from flashray import storage
from flashray.images import encode_png, from_uint8
from flashray.pipeline.commit import write_commit
from flashray.pipeline.worker_settings import Work

WRITTEN = pa.schema([("unit_id", pa.string()), ("images", pa.int64()), ("failed", pa.int64()), ("nfe", pa.int64())])
_WRITERS = 8


def write(table: pa.Table, work: Work) -> pa.Table:
    """The write stage: every reconstruction of a unit in one put each, then the unit's commit marker."""
    (unit,) = table.to_pylist()
    output, size = work.config.output, work.size

    def put(row: dict[str, Any], pixels: bytes | None) -> None:
        if pixels is None:
            return
        image = torch.from_numpy(np.frombuffer(pixels, np.uint8).copy()).reshape(3, size, size)
        data = encode_png(from_uint8(image))
        try:
            storage.put_bytes(storage.join(output, "reconstructions", row["key"] + ".png"), data)
            row["sha256"] = hashlib.sha256(data).hexdigest()
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            row |= {"status": "error", "error": f"its name is too long for the output's filesystem: {error.strerror}"}

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(put, unit["rows"], unit["images"]))
    write_commit(output, unit["unit_id"], unit["rows"])
    failed = sum(row["status"] != "ok" for row in unit["rows"])
    nfe = sum(row["nfe"] or 0 for row in unit["rows"])
    written = {"unit_id": unit["unit_id"], "images": len(unit["rows"]), "failed": failed, "nfe": nfe}
    return pa.Table.from_pylist([written], schema=WRITTEN)
