"""Samples of a prior, from pure noise and without a measurement."""

from __future__ import annotations

import torch
from torch import Tensor

from flashray.engine import advance
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_START, normal
from flashray.solvers.unguided import Unguided


@torch.no_grad()
def sample(
    prior: LatentPrior, latent_shape: tuple[int, ...], schedule: NoiseSchedule, seed_B: Tensor, eta: float = 1.0
) -> Tensor:
    """[B, *latent_shape] samples of the prior's latents, each from its own seed (int64, on the prior's device)."""
    z = normal(seed_B, torch.zeros_like(seed_B), latent_shape, STREAM_START)
    for i in reversed(range(len(schedule))):
        z = advance(prior, Unguided(), schedule, None, z, torch.full((len(z),), i), seed_B, eta)
    return z
