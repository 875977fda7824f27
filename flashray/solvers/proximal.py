"""Proximal data consistency: no back-propagation through denoiser or decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import AffineOperator, Operator
from flashray.errors import ConfigError
from flashray.seeding import STREAM_SOLVER
from flashray.solvers.solver import Problem, Step, norm, per_image, reverse_step

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Proximal:
    """ẑ0 is corrected by the change that brings its image closer to y, and re-noised to the next step.

    x̂0 = D(ẑ0);  x* = argmin_x ‖y - A(x)‖² + ρ ‖x - x̂0‖²;  z* = ẑ0 + relax (E(x*) - E(x̂0));
    z_prev = reverse_step with z* for ẑ0 and (z - √ᾱ z*)/√(1-ᾱ) for ε.

    Half-quadratic splitting with a diffusion denoiser (DiffPIR, Zhu et al. 2023, Algorithm 1) applied to latents. Only
    the *change* is encoded, so that the autoencoder's own error is not added again at every step. A
    step costs a denoiser, a decoder and two encoder evaluations, all forward. The proximal problem is solved by
    conjugate gradients on (JᵀJ + ρ) d = Jᵀ(y - A(x̂0)), x* = x̂0 + d: exactly for a linear A, whose J is A itself, and by
    Gauss-Newton steps with a new linearisation each for a nonlinear A.
    """

    # weight of staying near x̂0: ρ = rho (2 noise_std)² (ᾱ/(1-ᾱ))^anneal. Bayes' rule for Gaussian errors gives
    # σ_y²/σ_x², the variance of the measurement's noise over that of x̂0's error; with anneal 1 the latter is assumed
    # to be (1-ᾱ)/ᾱ over rho, so that y has less weight at lower noise (DiffPIR, equation 11)
    rho: float = 10.0
    anneal: float = 1.0  # 0 keeps ρ the same at every step
    iterations: int = 20  # conjugate-gradient steps, at most
    linearisations: int = 3  # Gauss-Newton steps for a nonlinear A
    relax: float = 1.0  # share of the change that is taken

    name: ClassVar[str] = "proximal"
    needs_gradient: ClassVar[bool] = False
    needs_adjoint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ConfigError(f"solver proximal: rho is {self.rho}; give a number > 0")
        if self.iterations < 1 or self.linearisations < 1:
            raise ConfigError("solver proximal: iterations and linearisations must be at least 1")
        if not 0 < self.relax <= 1:
            raise ConfigError(f"solver proximal: relax is {self.relax}; give a number in (0, 1]")

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        x0 = problem.decode(step.z0_BCHW)
        alpha = per_image(step.alpha_B)
        noise_variance = per_image((2 * problem.noise_std_B).square()).to(x0)
        rho = self.rho * noise_variance * (alpha / (1 - alpha)) ** self.anneal
        change = problem.encode(self.agree(x0, problem, rho)) - problem.encode(x0)
        return reverse_step(step.with_z0(step.z0_BCHW + self.relax * change), step.noise(STREAM_SOLVER))

    def agree(self, x0_BCHW: Tensor, problem: Problem, rho: Tensor) -> Tensor:
        """x*, images in [-1, 1]; rho is [B, 1, 1, 1]."""
        x = x0_BCHW
        for _ in range(1 if isinstance(problem.operator, AffineOperator) else self.linearisations):
            expected, jacobian, transpose = linearise(problem.operator, x)
            # ρ penalises (x + d) - x̂0, not d alone
            target = transpose(problem.y_BCHW - expected) + rho * (x0_BCHW - x)
            x = x + conjugate_gradients(normal_matrix(jacobian, transpose, rho), target, self.iterations)
        return x


def normal_matrix(jacobian: Linear, transpose: Linear, rho: Tensor) -> Linear:
    """d ↦ (JᵀJ + ρ) d."""
    return lambda d: transpose(jacobian(d)) + rho * d


def linearise(operator: Operator, x_BCHW: Tensor) -> tuple[Tensor, Linear, Linear]:
    """(A(x), d ↦ J d, r ↦ Jᵀ r) of A at x."""
    if isinstance(operator, AffineOperator):
        return operator.A(x_BCHW), operator.A_linear, operator.A_adjoint
    value, pull_back = torch.func.vjp(operator.A, x_BCHW)[:2]
    return value, lambda d: torch.func.jvp(operator.A, (x_BCHW,), (d,))[1], lambda r: pull_back(r)[0]


def conjugate_gradients(matrix: Linear, target_BCHW: Tensor, iterations: int, tolerance: float = 1e-4) -> Tensor:
    """Solve matrix(d) = target, symmetric and positive definite, image by image (Hestenes & Stiefel 1952).

    An image stops changing once its residual is below `tolerance` times its target's norm.
    """
    d = torch.zeros_like(target_BCHW)
    residual = direction = target_BCHW
    energy_B = norm(residual).square()
    enough_B = tolerance**2 * energy_B
    for _ in range(iterations):
        active_B = energy_B > enough_B
        if not active_B.any():
            break
        image = matrix(direction)
        length_B = energy_B / (direction * image).flatten(1).sum(dim=1)
        length = per_image(torch.where(active_B, length_B, 0.0))
        d = d + length * direction
        residual = residual - length * image
        next_energy_B = norm(residual).square()
        direction = residual + per_image(torch.where(active_B, next_energy_B / energy_B, 0.0)) * direction
        energy_B = next_energy_B
    return d
