"""Contact sheets of an experiment: what the numbers look like."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from benchmarks.pages.tables import column
from benchmarks.results import Result
from flashray.images import contact_sheet, open_image


def picture_sheet(results: Sequence[Result]) -> Image.Image | None:
    """The images of one task that every cell kept: measurement, every method, clean; the least damaged first."""
    shown = [one for one in results if one.cell.method.baseline not in ("measurement", "ceiling")]
    kept = [{row["key"]: row for row in one.pictures.to_pylist()} for one in shown]
    keys = [key for key in kept[0] if all(key in one for one in kept)] if kept else []
    if not keys:
        return None
    damage = _damage(shown)
    keys.sort(key=lambda key: damage.get(key, 0.0))
    rows = [
        [
            open_image(kept[0][key]["measurement"]).pixels,
            *(open_image(one[key]["restored"]).pixels for one in kept),
            open_image(kept[0][key]["clean"]).pixels,
        ]
        for key in keys
    ]
    return contact_sheet(rows, ["degraded", *(_broken(one.cell.method.name) for one in shown), "clean"])


def outlier_sheet(results: Sequence[Result], count: int = 8) -> Image.Image | None:
    """The kept photos whose σ̂ and σ̄ are farthest apart, each at its worst level: measurement, ẑ decoded, clean."""
    worst: dict[tuple[str, str], tuple[float, str, dict[str, Any]]] = {}  # by family's parameter and photo
    for one in results:
        rows = {row["key"]: row for row in one.rows.to_pylist()}
        for picture in one.pictures.to_pylist():
            row = rows[picture["key"]]
            hat, true = row["sigma_hat"], row["sigma_true"]
            name, level = next(iter(json.loads(row["parameters"]).items()))
            title = f"{row['key'][:24]}\n{name} {level:.2f}\nσ̂ {hat:.2f}, σ̄ {true:.2f}"
            apart = abs(math.log(hat / true))
            if apart > worst.get((name, row["key"]), (0.0,))[0]:
                worst[name, row["key"]] = (apart, title, picture)
    found = sorted(worst.values(), key=lambda one: -one[0])
    if not found:
        return None
    images = [
        [open_image(row[what]).pixels for what in ("measurement", "restored", "clean")] for _, _, row in found[:count]
    ]
    return contact_sheet(images, ["degraded", "ẑ decoded", "clean"], [title for _, title, _ in found[:count]])


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _broken(title: str) -> str:
    """A column's title on several lines."""
    return title.replace(", ", "\n").replace("(", "\n(")


def _damage(results: Sequence[Result]) -> dict[str, float]:
    """key → true error of the latent estimate, where a cell knows it."""
    known = [one for one in results if one.rows["sigma_true"].null_count == 0]
    return (
        dict(zip(known[0].rows["key"].to_pylist(), column(known[0], "sigma_true").tolist(), strict=True))
        if known
        else {}
    )
