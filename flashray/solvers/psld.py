"""Posterior sampling with latent diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.seeding import STREAM_SOLVER
from flashray.solvers.solver import Problem, Step, norm, reverse_step
from flashray.windows import crop


@dataclass(frozen=True)
class PSLD:
    """z_prev = reverse_step(z) - ∇_z (dc_step · ‖r‖₂ + ae_weight · ‖ẑ0 - E(x̂0 + Aᵀ r)‖₂), r = y - A x̂0, x̂0 = D(ẑ0).

    The second term combines the measured part of y with the rest of x̂0: x̂0 + Aᵀ r = Aᵀ y + x̂0 - AᵀA x̂0 (Rout et al.
    2023, as Flash-Diffusion's appendix uses it); images are in [-1, 1] and norms are per image. AᵀA should be a
    projection; where it is not, as for a blur, x̂0 + Aᵀ r is only one gradient step towards y.

    The authors' own code differs: it adds fresh noise to the predicted measurement at every step, takes one norm over
    the whole batch, and runs DDIM with Stable Diffusion.
    """

    dc_step: float = 2.0  # ≥ 0; step size, in units of the latent per unit of either norm; the authors' ω
    ae_weight: float = 0.1  # ≥ 0; likewise; the authors' γ

    name: ClassVar[str] = "psld"
    needs_gradient: ClassVar[bool] = True
    needs_adjoint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.dc_step >= 0 and self.ae_weight >= 0):
            raise ConfigError(f"solver psld: dc_step {self.dc_step} and ae_weight {self.ae_weight} must be ≥ 0")

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        x0 = problem.decode(step.z0_BCHW)
        residual = problem.y_BCHW - problem.operator.A(x0)
        glued = x0 + problem.operator.A_adjoint(residual)
        glue_B = norm(crop(step.z0_BCHW - problem.encode(glued), problem.valid))
        objective_B = self.dc_step * norm(residual) + self.ae_weight * glue_B
        (gradient,) = torch.autograd.grad(problem.norm_scale * objective_B.sum(), step.z_BCHW)
        return reverse_step(step, step.noise(STREAM_SOLVER)) - gradient
