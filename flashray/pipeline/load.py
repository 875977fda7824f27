"""The load stage of both passes: plain tasks that read, decode and fit images, so that no actor waits for a disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from flashray.errors import ImageError
from flashray.pipeline.board import watched
from flashray.pipeline.measurement import Loaded, load_images
from flashray.pipeline.work import Work


def load(table: pa.Table, work: Work, board: Any) -> pa.Table:
    """Add to one row (a unit, or a chunk of the plan pass) the lists pixels, width, height and error of its images.

    The row has the lists key and uri; with a list reference_uri it also gets `reference`, pixels again, null where a
    reference cannot be read.
    """
    torch.set_num_threads(1)  # several of these tasks share the machine with an actor
    names = [name for name in ("unit_id", "uri", "reference_uri") if name in table.column_names]
    (row,) = table.select(names).to_pylist()
    size, fit = work.size, work.config.fit
    references: Sequence[Loaded] = []
    try:
        with watched(board, f"reading the images of {row['unit_id']}"):
            loaded = load_images(row["uri"], size, fit)
            if "reference_uri" in row:
                references = load_images(row["reference_uri"], size, fit)
    except ImageError as error:
        loaded = [Loaded(error=str(error))] * len(row["uri"])
        references = [Loaded()] * len(row["uri"]) if "reference_uri" in row else []
    for name, kind in (("pixels", pa.binary()), ("width", pa.int32()), ("height", pa.int32()), ("error", pa.string())):
        table = table.append_column(name, pa.array([[getattr(one, name) for one in loaded]], pa.list_(kind)))
    if references:
        table = table.append_column("reference", pa.array([[one.pixels for one in references]], pa.list_(pa.binary())))
    return table
