"""Latent diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.seeding import STREAM_SOLVER
from flashray.solvers.solver import Problem, Step, norm, reverse_step


@dataclass(frozen=True)
class LatentDPS:
    """z_prev = reverse_step(z) - dc_step · ∇_z ‖y - A(D(ẑ0(z)))‖₂, the norm of each image alone, on [-1, 1].

    Latent-DPS of Flash-Diffusion: DPS (Chung et al. 2023, Algorithm 1) applied to latents. The norm is not squared, so
    the gradient's length does not grow with the residual. The paper of DPS prints ζ_i ∇‖r‖² with ζ_i = ζ'/‖r‖, which is
    2 ζ' ∇‖r‖: `dc_step` is twice its ζ'. Its authors' code takes one norm over the whole batch.

    This is not an exact posterior sampler: p(y | z_t) is approximated by its value at the one image D(ẑ0), without the
    spread of the images that z_t allows. The best `dc_step` falls as the number of steps rises.
    """

    dc_step: float = 1.0  # ≥ 0; step size, in units of the latent per unit of the residual's norm

    name: ClassVar[str] = "latent_dps"
    needs_gradient: ClassVar[bool] = True
    needs_adjoint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.dc_step >= 0:
            raise ConfigError(f"solver latent_dps: dc_step is {self.dc_step}; give a number ≥ 0")

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        x0 = problem.decode(step.z0_BCHW)
        objective_B = norm(problem.y_BCHW - problem.operator.A(x0))
        (gradient,) = torch.autograd.grad(problem.norm_scale * objective_B.sum(), step.z_BCHW)
        return reverse_step(step, step.noise(STREAM_SOLVER)) - self.dc_step * gradient
