"""The settings that every worker of a run needs. Light to import: load and write tasks start without the models."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashray.pipeline.run_config import RunConfig
from flashray.tracking.tracking_config import TrackingConfig

if TYPE_CHECKING:
    from flashray.prior import LatentPrior
    from flashray.restorer import Restorer
    from flashray.severity import SeverityEncoder

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_KEPT = 2**31 - 1  # bytes; the parameter is an int


@dataclass(frozen=True)
class WorkerSettings:
    """Settings and names that are sent to the workers; no filesystem and no secret."""

    config: RunConfig
    device: str
    threads: int
    lpips: bool  # whether LPIPS can be computed
    run_id: str = ""  # the fingerprint of the run, for the note of provenance

    @classmethod
    def of(cls, config: RunConfig, device: str, threads: int, lpips: bool, run_id: str = "") -> WorkerSettings:
        return cls(dataclasses.replace(config, tracking=TrackingConfig()), device, threads, lpips, run_id)

    def note_of(self, row: Mapping[str, Any]) -> dict[str, str] | None:
        """The note of provenance in the metadata of a commit row's image; None where the run writes none.

        It names the recipe by its parts. It holds no date, so that the same image gets the same bytes again.
        """
        if not self.config.io.provenance:
            return None
        recipe = self.config.recipe
        parts = f"{recipe.degradation.name}_{recipe.start.mode}_{recipe.solver.name}"
        note = {"recipe": parts, "nfe": f"{row['nfe']:g}"}
        if row["sigma_hat"] is not None:
            note["sigma_hat"] = f"{row['sigma_hat']:.4f}"
        return note | ({"run": self.run_id} if self.run_id else {})

    def restorer(self, prior: LatentPrior | None = None, encoder: SeverityEncoder | None = None) -> Restorer:
        """The run's restorer, of these models if they are loaded; it computes with `threads` and keeps freed memory."""
        import torch

        from flashray.restorer import Restorer, load_models

        torch.set_num_threads(self.threads)
        keep_freed_memory()
        config = self.config
        if prior is None:
            prior, encoder = load_models(config.recipe, self.device)
        prior.bf16 = config.resources.precision == "bf16"
        return Restorer(config.recipe, prior, encoder, config.io.measurement, config.io.fit, config.resources.slots)


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, and use them again; does nothing without glibc.

    By default every tensor beyond 32 MB is mapped anew, and the kernel clears its pages each time: half of the time
    that a photo of several megapixels takes on CPUs (docs/results/any-size.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, 64 * 2**20)):
        mallopt(name, value)
