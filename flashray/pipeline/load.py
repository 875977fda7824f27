"""The load stage of both passes: plain tasks that read, decode and fit images, so that no actor waits for a disk."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from flashray.pipeline.measurement import Frame, Loaded, load_images, mask_uri_of
from flashray.pipeline.quarantine import watched
from flashray.pipeline.worker_settings import Work


def load(table: pa.Table, work: Work, board: Any) -> pa.Table:
    """Add to one row (a unit, or a chunk of the plan pass) the lists pixels, mask, width, height, error of its images.

    The row has the lists key and uri, and what is given of each image in `given` or `parameters`; with a list
    reference_uri it also gets `reference`, pixels again, null where a reference cannot be read.
    """
    torch.set_num_threads(1)  # several of these tasks share the machine with an actor
    wanted = ("unit_id", "uri", "reference_uri", "given", "parameters")
    names = [name for name in wanted if name in table.column_names]
    (row,) = table.select(names).to_pylist()
    masks = [mask_uri_of(given) for given in row.get("given", row.get("parameters"))]
    frame, reference_frame = Frame.of(work.config, work.size), Frame(work.size, work.config.fit)
    loaded: list[Loaded] = []
    references: list[Loaded] = []
    with watched(board, f"reading the images of {row['unit_id']}") as watch:
        for places, given_up in watch.parts(row["uri"]):
            if given_up:
                loaded += [Loaded(error=str(given_up))] * len(places)
            else:
                loaded += load_images([row["uri"][i] for i in places], frame, [masks[i] for i in places])
            if "reference_uri" in row:
                uris = [] if given_up else [row["reference_uri"][i] for i in places]
                references += load_images(uris, reference_frame) if uris else [Loaded()] * len(places)
    columns = {"pixels": pa.binary(), "mask": pa.binary(), "width": pa.int32(), "height": pa.int32()}
    for name, kind in (columns | {"error": pa.string()}).items():
        table = table.append_column(name, pa.array([[getattr(one, name) for one in loaded]], pa.list_(kind)))
    if references:
        table = table.append_column("reference", pa.array([[one.pixels for one in references]], pa.list_(pa.binary())))
    return table
