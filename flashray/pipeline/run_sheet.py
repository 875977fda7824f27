"""The contact sheet of a run: a dozen images from the easiest to the hardest, before and after."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from flashray import storage
from flashray.errors import ImageError
from flashray.images import contact_sheet, decode_image
from flashray.pipeline.bench import Bench
from flashray.pipeline.measurement import Frame, load_image, mask_uri_of, unpack_pixels
from flashray.pipeline.run_status import State

ROWS = 12


def make_sheet(bench: Bench, state: State) -> Image.Image | None:
    """Degraded, ẑ decoded, reconstruction and reference of up to a dozen images spread over σ̂; None without any."""
    rows = [row for row in (_row(bench, one) for one in _spread(state)) if row is not None]
    if not rows:
        return None
    config = bench.work.config
    titles = ["degraded", "ẑ decoded", f"{config.start.mode}({config.solver.name})", "reference"]
    used = [column for column in range(len(titles)) if any(images[column] is not None for _, images in rows)]
    return contact_sheet(
        [[images[column] for column in used] for _, images in rows],
        [titles[column] for column in used],
        [title for title, _ in rows],
    )


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _spread(state: State) -> list[dict[str, Any]]:
    """Plan rows of restored images, evenly over their order by σ̂ (by key where there is none)."""
    results = state.results.filter(pc.equal(state.results["status"], "ok"))
    plan = state.planned.filter(pc.is_in(state.planned["key"], results["key"]))
    plan = plan.sort_by([("sigma_hat", "ascending"), ("key", "ascending")])
    places = np.unique(np.linspace(0, len(plan) - 1, min(ROWS, len(plan))).round().astype(np.int64))
    return plan.take(pa.array(places)).to_pylist()


def _row(bench: Bench, row: dict[str, Any]) -> tuple[str, list[Tensor | None]] | None:
    config, size = bench.work.config, bench.work.size
    loaded = load_image(row["uri"], bench.frame, mask_uri_of(row["parameters"]))
    try:
        restored = decode_image(storage.read_bytes(storage.join(config.output, "reconstructions", row["key"] + ".png")))
        if loaded.pixels is None:
            return None
        photo = bench.photo(row["key"], loaded.pixels, row["parameters"], row["noise_std"], loaded.mask)
    except (OSError, ImageError):
        return None
    measured = bench.measure([photo])
    z_hat, _ = bench.estimate(measured.seen_BCHW)
    with torch.no_grad():
        estimate = None if z_hat is None else bench.prior.decode(z_hat)[0].cpu()
    reference = photo.x if bench.measurer.simulated else None
    if config.references is not None:
        found = load_image(storage.join(config.references, row["key"]), Frame(size, config.fit)).pixels
        reference = None if found is None else unpack_pixels(found, size)
    sigma = "" if row["sigma_hat"] is None else f"σ̂ {row['sigma_hat']:.3f}, "
    return f"{row['key']}\n{sigma}{row['nfe']} NFE", [measured.shown_BCHW[0].cpu(), estimate, restored, reference]
