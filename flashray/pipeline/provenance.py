"""The note of provenance in a restored image's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashray.pipeline.worker_settings import WorkerSettings


def note_of(row: Mapping[str, Any], work: WorkerSettings) -> dict[str, str] | None:
    """How the image of a commit row was made; None where the run writes no notes.

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
