"""The contact sheet of a run: up to a dozen images from the easiest to the hardest, before and after."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from flashray import storage
from flashray.errors import ImageError
from flashray.images import contact_sheet, open_image
from flashray.measurement import Measurement, Photo
from flashray.pipeline.decoding import decode_photo, decode_reference
from flashray.pipeline.load import mask_uri_of, read_file, read_together
from flashray.pipeline.outputs import Layout
from flashray.pipeline.run_config import IoConfig
from flashray.pipeline.run_status import RunStatus
from flashray.restorer import Restorer
from flashray.shards.place import Place
from flashray.shown import shown

ROWS = 12
SHOWN = 256  # pixels to a side of a picture in the sheet, or the prior's size; larger ones are shrunk
ESTIMATED = 2_000_000  # pixels of a photo whose ẑ is shown, because the driver computes it again


@torch.no_grad()
def make_sheet(restorer: Restorer, io: IoConfig, status: RunStatus) -> Image.Image | None:
    """Degraded, ẑ decoded, restored and reference of up to a dozen images spread over σ̂; None without any."""
    rows = [row for row in (row_of_sheet(restorer, io, *one) for one in spread(status, ROWS)) if row is not None]
    if not rows:
        return None
    titles = ["degraded", "ẑ decoded", f"{restorer.start.mode}({restorer.recipe.solver.name})", "reference"]
    used = [column for column in range(len(titles)) if any(images[column] is not None for _, images in rows)]
    return contact_sheet(
        [[images[column] for column in used] for _, images in rows],
        [titles[column] for column in used],
        [title for title, _ in rows],
    )


def spread(status: RunStatus, most: int, without: Collection[str] = ()) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(plan row, commit row) of restored images but the keys `without`, evenly over their order by σ̂ (else by key)."""
    results = status.results.filter(pc.equal(status.results["status"], "ok"))
    plan = status.planned.filter(pc.is_in(status.planned["key"], results["key"]))
    plan = plan.filter(pc.invert(pc.is_in(plan["key"], pa.array(list(without), pa.string()))))
    plan = plan.sort_by([("sigma_hat", "ascending"), ("key", "ascending")])
    indices = np.unique(np.linspace(0, len(plan) - 1, min(most, len(plan))).round().astype(np.int64))
    plan = plan.take(pa.array(indices))
    done = results.take(pc.index_in(plan["key"], results["key"]))
    return list(zip(plan.to_pylist(), done.to_pylist(), strict=True))


def read_sample(
    restorer: Restorer, io: IoConfig, row: dict[str, Any], done: dict[str, Any]
) -> tuple[Photo, Measurement, Tensor] | None:
    """(photo, its measurement, the restored pixels) of a plan row and its commit row; None where one of its files
    cannot be read.
    """
    places = Place(row["uri"], row["offset"], row["length"]), Layout.of(io).place(done)
    (loaded,), (made,) = (read_together([place]) for place in places)
    mask = read_file(mask_uri_of(row["parameters"]))
    if loaded.data is None or made.data is None:
        return None
    try:
        restored = open_image(made.data, io.max_megapixels).pixels
        arguments = (row["key"], loaded.data, row["parameters"], row["noise_std"], mask.data)
        photo = decode_photo(restorer, *arguments, max_megapixels=io.max_megapixels)
    except (OSError, ImageError):
        return None
    return photo, restorer.measure([photo]), restored


def row_of_sheet(
    restorer: Restorer, io: IoConfig, row: dict[str, Any], done: dict[str, Any]
) -> tuple[str, list[Tensor | None]] | None:
    """(title, images) of a plan row and its commit row; None where its image or its restored image cannot be read."""
    found = read_sample(restorer, io, row, done)
    if found is None:
        return None
    photo, measured, restored = found
    height, width = measured.image_size
    z_hat = restorer.estimate(measured).z_hat_BCHW if height * width <= ESTIMATED else None
    estimate = None if z_hat is None else restorer.decode(z_hat, (height, width))[0].cpu()
    reference = photo.x if restorer.measurer.simulated else None
    if io.references is not None:
        reference = decode_reference(
            restorer, read_file(storage.join(io.references, row["key"])).data, io.max_megapixels
        )
    sigma = "" if row["sigma_hat"] is None else f"σ̂ {row['sigma_hat']:.3f}, "
    side = max(SHOWN, restorer.prior.sample_size)
    images = [measured.shown_BCHW[0].cpu(), estimate, restored, reference]
    return f"{shown(row['key'])}\n{sigma}{round(row['nfe'], 1):g} NFE", [
        one if one is None else shrunk(one, side) for one in images
    ]


def shrunk(image_CHW: Tensor, side: int) -> Tensor:
    """The image with at most `side` pixels to a side."""
    longest = max(image_CHW.shape[1:])
    if longest <= side:
        return image_CHW
    size = [max(1, round(length * side / longest)) for length in image_CHW.shape[1:]]
    return interpolate(image_CHW[None], size=size, mode="area")[0]
