"""The contact sheet of a run: up to a dozen images from the easiest to the hardest, before and after."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from flashray import storage
from flashray.errors import ImageError
from flashray.images import contact_sheet, open_image, output_name
from flashray.pipeline.decoding import decode_photo, decode_reference
from flashray.pipeline.load import mask_uri_of, read_file, read_files
from flashray.pipeline.run_config import IoConfig
from flashray.pipeline.run_status import RunStatus
from flashray.restorer import Restorer
from flashray.shown import shown

ROWS = 12


@torch.no_grad()
def make_sheet(restorer: Restorer, io: IoConfig, status: RunStatus) -> Image.Image | None:
    """Degraded, ẑ decoded, restored and reference of up to a dozen images spread over σ̂; None without any."""
    rows = [row for row in (row_of_sheet(restorer, io, one) for one in _spread(status)) if row is not None]
    if not rows:
        return None
    titles = ["degraded", "ẑ decoded", f"{restorer.start.mode}({restorer.recipe.solver.name})", "reference"]
    used = [column for column in range(len(titles)) if any(images[column] is not None for _, images in rows)]
    return contact_sheet(
        [[images[column] for column in used] for _, images in rows],
        [titles[column] for column in used],
        [title for title, _ in rows],
    )


def to_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _spread(status: RunStatus) -> list[dict[str, Any]]:
    """Plan rows of restored images, evenly over their order by σ̂ (by key where there is none)."""
    results = status.results.filter(pc.equal(status.results["status"], "ok"))
    plan = status.planned.filter(pc.is_in(status.planned["key"], results["key"]))
    plan = plan.sort_by([("sigma_hat", "ascending"), ("key", "ascending")])
    indices = np.unique(np.linspace(0, len(plan) - 1, min(ROWS, len(plan))).round().astype(np.int64))
    return plan.take(pa.array(indices)).to_pylist()


def row_of_sheet(restorer: Restorer, io: IoConfig, row: dict[str, Any]) -> tuple[str, list[Tensor | None]] | None:
    """(title, images) of a plan row; None where its image or its restored image cannot be read."""
    loaded, mask = read_files([row["uri"], mask_uri_of(row["parameters"])])
    try:
        name = storage.join(io.output, output_name(row["key"], io.format))
        restored = open_image(storage.read_bytes(name), io.max_megapixels).pixels
        if loaded.data is None:
            return None
        arguments = (row["key"], loaded.data, row["parameters"], row["noise_std"], mask.data)
        photo, _ = decode_photo(restorer, *arguments, max_megapixels=io.max_megapixels)
    except (OSError, ImageError):
        return None
    measured = restorer.measure([photo])
    z_hat = restorer.estimate(measured).z_hat_BCHW
    estimate = None if z_hat is None else restorer.decode(z_hat)[0].cpu()
    reference = photo.x if restorer.measurer.simulated else None
    if io.references is not None:
        reference = decode_reference(
            restorer, read_file(storage.join(io.references, row["key"])).data, io.max_megapixels
        )
    sigma = "" if row["sigma_hat"] is None else f"σ̂ {row['sigma_hat']:.3f}, "
    return f"{shown(row['key'])}\n{sigma}{row['nfe']} NFE", [
        measured.shown_BCHW[0].cpu(),
        estimate,
        restored,
        reference,
    ]
