"""Samples of a prior, from pure noise and without a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.engine import advance
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_SOLVER, STREAM_START, normal
from flashray.solvers.base import Problem, Step, reverse_step


@dataclass(frozen=True)
class Unconditional:
    """z_prev = reverse_step(z): the reverse diffusion alone."""

    name: ClassVar[str] = "unconditional"
    needs_gradient: ClassVar[bool] = False
    needs_adjoint: ClassVar[bool] = False

    def __call__(self, step: Step, problem: Problem | None) -> Tensor:
        return reverse_step(step, step.noise(STREAM_SOLVER))


@torch.no_grad()
def sample(
    prior: LatentPrior, latent_shape: tuple[int, ...], schedule: NoiseSchedule, seed_B: Tensor, eta: float = 1.0
) -> Tensor:
    """[B, *latent_shape] samples of the prior's latents, each from its own seed (int64, on the prior's device)."""
    z = normal(seed_B, torch.zeros_like(seed_B), latent_shape, STREAM_START)
    for i in reversed(range(len(schedule))):
        z = advance(prior, Unconditional(), schedule, None, z, torch.full((len(z),), i), seed_B, eta)
    return z
