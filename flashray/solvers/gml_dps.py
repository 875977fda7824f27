"""Latent DPS with a goodness term: gradients towards latents that are fixed points of the autoencoder."""

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
class GMLDPS:
    """z_prev = reverse_step(z) - ∇_z (dc_step · ‖y - A(D(ẑ0))‖₂ + ae_weight · ‖ẑ0 - E(D(ẑ0))‖₂), on [-1, 1], per image.

    The second term pulls ẑ0 to a fixed point of the autoencoder: GML-DPS of Rout et al. 2023 ("goodness modified"),
    as Flash-Diffusion's appendix uses it. Rout et al. introduce it on the way to PSLD; their code has PSLD only, with
    one norm over the whole batch.
    """

    dc_step: float = 2.0  # ≥ 0; step size, in units of the latent per unit of either norm
    ae_weight: float = 0.05  # ≥ 0; likewise

    name: ClassVar[str] = "gml_dps"
    needs_gradient: ClassVar[bool] = True
    needs_adjoint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (self.dc_step >= 0 and self.ae_weight >= 0):
            raise ConfigError(f"solver gml_dps: dc_step {self.dc_step} and ae_weight {self.ae_weight} must be ≥ 0")

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        x0 = problem.decode(step.z0_BCHW)
        data_B = norm(problem.y_BCHW - problem.operator.A(x0))
        glue_B = norm(crop(step.z0_BCHW - problem.encode(x0), problem.valid))
        objective_B = self.dc_step * data_B + self.ae_weight * glue_B
        (gradient,) = torch.autograd.grad(problem.norm_scale * objective_B.sum(), step.z_BCHW)
        return reverse_step(step, step.noise(STREAM_SOLVER)) - gradient
