"""The models of one process, built from what travels to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from flashray.pipeline.measurement import Frame, Measured, Measurer, Photo, unpack_mask, unpack_pixels
from flashray.pipeline.run_config import ReconstructConfig
from flashray.pipeline.worker_settings import Work
from flashray.prior import LatentPrior, load_prior
from flashray.schedule import NoiseSchedule
from flashray.severity import SeverityEncoder, Start, estimate, load_severity_encoder


class Bench:
    """The models of one process, each loaded when it is first asked for.

    Args:
        work: what the run is about.
        prior, encoder: loaded already, perhaps.
    """

    def __init__(self, work: Work, prior: LatentPrior | None = None, encoder: SeverityEncoder | None = None) -> None:
        torch.set_num_threads(work.threads)
        self.work, self.device = work, torch.device(work.device)
        self.measurer = Measurer(work.config)
        self.frame = Frame.of(work.config, work.size)
        self.start = start_of(work.config)
        self._prior, self._encoder = prior, encoder

    @cached_property
    def prior(self) -> LatentPrior:
        prior = self._prior or load_prior(self.work.config.prior, self.device)
        prior.bf16 = self.work.config.precision == "bf16"
        return prior

    @cached_property
    def encoder(self) -> SeverityEncoder | None:
        start = self.work.config.start
        if start.mode == "full":
            return None
        return self._encoder or load_severity_encoder(start.severity_encoder, self.device)

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The respaced chain of the recipe."""
        return self.work.config.solver.chain(self.prior.schedule)

    def photo(self, key: str, pixels: bytes, given: str | None, noise_std: float | None, mask: bytes | None) -> Photo:
        """A loaded image that can be measured; ImageError where its parameters or its noise are not known."""
        side = self.frame.side
        return self.measurer.photo(key, unpack_pixels(pixels, side), given, noise_std, unpack_mask(mask, side))

    def measure(self, photos: Sequence[Photo]) -> Measured:
        """Their measurements on this bench's device."""
        return self.measurer.measure(photos, self.device)

    def estimate(self, seen_BCHW: Tensor) -> tuple[Tensor | None, Tensor]:
        """(ẑ_BCHW, σ̂_B on the CPU) of measurements as encoders see them; (None, NaN) when no encoder looks."""
        if self.encoder is None:
            return None, torch.full((len(seen_BCHW),), torch.nan)
        z_hat, sigma_hat = estimate(self.encoder, self.prior, seen_BCHW)
        return z_hat, sigma_hat.double().cpu()

    def no_estimate(self, count: int) -> Tensor:
        """Zeros in the shape of latents, for a full chain, which starts from noise alone."""
        with torch.no_grad():
            shape = self.prior.encode(torch.zeros(1, 3, self.work.size, self.work.size, device=self.device)).shape
        return torch.zeros(count, *shape[1:], device=self.device)


def start_of(config: ReconstructConfig) -> Start:
    """The start of the recipe."""
    start = config.start
    return Start(mode=start.mode, formula=start.formula, c=start.c, sigma_scale=start.sigma_scale)
