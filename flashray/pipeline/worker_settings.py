"""The settings that every worker of a run needs. Light to import: load and write tasks start without the models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashray.pipeline.memory import keep_freed_memory
from flashray.pipeline.run_config import RunConfig
from flashray.tracking.tracking_config import TrackingConfig

if TYPE_CHECKING:
    from flashray.prior import LatentPrior
    from flashray.restorer import Restorer
    from flashray.severity import SeverityEncoder


@dataclass(frozen=True)
class WorkerSettings:
    """Settings and names that are sent to the workers; no filesystem and no secret.

    Attributes:
        lpips: whether LPIPS can be computed.
        run_id: the fingerprint of the run, for the note of provenance.
    """

    config: RunConfig
    device: str
    threads: int
    lpips: bool
    run_id: str = ""

    @classmethod
    def of(cls, config: RunConfig, device: str, threads: int, lpips: bool, run_id: str = "") -> WorkerSettings:
        return cls(dataclasses.replace(config, tracking=TrackingConfig()), device, threads, lpips, run_id)

    def restorer(self, prior: LatentPrior | None = None, encoder: SeverityEncoder | None = None) -> Restorer:
        """The run's restorer in this process, which computes with `threads` threads and keeps freed memory from now on.

        Args:
            prior, encoder: the models, if they are loaded already.
        """
        import torch

        from flashray.restorer import Restorer, load_models

        torch.set_num_threads(self.threads)
        keep_freed_memory()
        config = self.config
        if prior is None:
            prior, encoder = load_models(config.recipe, self.device)
        prior.bf16 = config.resources.precision == "bf16"
        return Restorer(config.recipe, prior, encoder, config.io.measurement, config.io.fit, config.resources.slots)
