"""The settings that every worker of a run needs. Light to import: load and write tasks start without the models."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashray.errors import FlashrayError
from flashray.memory import keep_freed_memory
from flashray.pipeline.run_config import RunConfig
from flashray.tracking.tracking_config import TrackingConfig

if TYPE_CHECKING:
    from flashray.prior import LatentPrior
    from flashray.restorer import Restorer
    from flashray.severity import SeverityEncoder


@dataclass(frozen=True)
class WorkerSettings:
    """Settings and names that are sent to the workers; no filesystem and no secret."""

    config: RunConfig
    device: str
    threads: int
    lpips: bool  # whether LPIPS can be computed
    run_id: str = ""  # the fingerprint of the run, for the note of provenance
    weights: Mapping[str, str | None] | None = None  # hashes of the models that the run began with; None checks nothing

    @classmethod
    def of(
        cls,
        config: RunConfig,
        device: str,
        threads: int,
        lpips: bool,
        run_id: str = "",
        weights: Mapping[str, str | None] | None = None,
    ) -> WorkerSettings:
        return cls(dataclasses.replace(config, tracking=TrackingConfig()), device, threads, lpips, run_id, weights)

    def restorer(self, prior: LatentPrior | None = None, encoder: SeverityEncoder | None = None) -> Restorer:
        """The run's restorer in this process, which computes with `threads` threads. A worker keeps freed memory.

        The driver hands its models over. FlashrayError when what this machine loads is not what the run began with.
        """
        import torch

        from flashray.loading import load_models
        from flashray.restorer import Restorer

        torch.set_num_threads(self.threads)
        config = self.config
        if prior is None:
            keep_freed_memory()
            prior, encoder = load_models(config.recipe, self.device)
            if self.weights is not None:
                self._compare(hashes(prior, encoder))
        prior.bf16 = config.resources.precision == "bf16"
        return Restorer(config.recipe, prior, encoder, config.io.measurement, config.io.fit, config.resources.slots)

    def _compare(self, found: Mapping[str, str | None]) -> None:
        assert self.weights is not None
        sources = {"prior": self.config.recipe.prior, "severity_encoder": self.config.recipe.start.severity_encoder}
        for name, source in sources.items():
            if found[name] != self.weights.get(name):
                raise FlashrayError(
                    f"the {name.replace('_', ' ')} {source} has changed since the run began, or is another one on "
                    f"{platform.node()}: its hash is {found[name]}, and the run's {self.weights.get(name)}. Put back "
                    "what was there"
                )


def hashes(prior: LatentPrior, encoder: SeverityEncoder | None) -> dict[str, str | None]:
    """The hashes of a run's models, by their names in its fingerprint."""
    return {"prior": prior.sha256, "severity_encoder": encoder.sha256 if encoder else None}
