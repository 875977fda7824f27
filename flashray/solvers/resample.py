"""ReSample: hard data consistency, then stochastic resampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.seeding import STREAM_RESAMPLE, STREAM_SOLVER
from flashray.solvers.solver import Problem, Step, per_image, reverse_step

BETA_1, BETA_2 = 0.9, 0.999  # of Adam (Kingma and Ba 2015)


@dataclass(frozen=True)
class ReSample:
    """At each `every`-th step ẑ0 is corrected to agree with y, and z_prev drawn between it and the reverse step's z'.

    Above timestep `none_above` nothing is corrected; above `pixel_above`
    x* = argmin_x ‖y - A(x)‖² + proximal ‖x - D(ẑ0)‖² is solved and encoded, z* = E(x*); below,
    z* = argmin_z ‖y - A(D(z))‖² + proximal ‖z - ẑ0‖² directly; both by Adam from the current estimate, each image until
    its mean squared residual is ≤ σ², the noise's variance on [-1, 1]. Then, with
    s = resample_step (1-ᾱ_prev)/ᾱ (1-ᾱ/ᾱ_prev):
    z_prev ~ N((s √ᾱ z* + (1-ᾱ) z') / (s + 1-ᾱ), s (1-ᾱ) / (s + 1-ᾱ)).

    Song et al. 2024, as Flash-Diffusion's appendix uses it: there on a DDIM schedule of 500 steps with η = 1, with the
    settings below and a `resample_step` of 200 … 2000, depending on the task. Where the last step ends at the data
    (ᾱ_prev = 1), s is 0 and nothing is corrected. docs/operators-and-solvers.md says how both public codes differ.
    """

    resample_step: float = 400.0  # the factor of s: the larger it is, the more weight z* has against z'
    # steps between corrections, counted on the (respaced) schedule from its end: steps 0, every, 2 every, …
    every: int = 10
    iterations: int = 100  # maximum number of Adam's steps, at `learning_rate`
    learning_rate: float = 0.1
    # weight of staying near ẑ0; Bayes' rule for Gaussian errors gives the variance of the measurement's noise over that
    # of ẑ0's error
    proximal: float = 1.0
    none_above: int = 750  # timestep, 0 … 999, independent of respacing
    pixel_above: int = 300  # timestep, likewise

    name: ClassVar[str] = "resample"
    needs_gradient: ClassVar[bool] = False
    needs_adjoint: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.iterations < 1:
            raise ConfigError(f"solver resample: every {self.every} and iterations {self.iterations} must be ≥ 1")
        if not (self.resample_step > 0 and self.learning_rate > 0 and self.proximal >= 0):
            raise ConfigError("solver resample: resample_step and learning_rate must be positive, and proximal ≥ 0")

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        z_next = reverse_step(step, step.noise(STREAM_SOLVER))
        due_B = (step.index_B % self.every == 0) & (step.timestep_B <= self.none_above) & (step.alpha_prev_B < 1)
        if not due_B.any():
            return z_next
        in_pixels_B = due_B & (step.timestep_B > self.pixel_above)
        z_star = step.z0_BCHW.clone()
        if in_pixels_B.any():
            z_star[in_pixels_B] = self._in_pixels(z_star[in_pixels_B], problem.select(in_pixels_B))
        in_latents_B = due_B & ~in_pixels_B
        if in_latents_B.any():
            z_star[in_latents_B] = self._in_latents(z_star[in_latents_B], problem.select(in_latents_B))
        alpha, alpha_prev = per_image(step.alpha_B), per_image(step.alpha_prev_B)
        s = self.resample_step * (1 - alpha_prev) / alpha * (1 - alpha / alpha_prev)
        mean = (s * alpha.sqrt() * z_star + (1 - alpha) * z_next) / (s + 1 - alpha)
        variance = s * (1 - alpha) / (s + 1 - alpha)
        return torch.where(per_image(due_B), mean + variance.sqrt() * step.noise(STREAM_RESAMPLE), z_next)

    def _in_pixels(self, z0: Tensor, problem: Problem) -> Tensor:
        return problem.encode(self._agree(problem.decode(z0), lambda x: x, problem))

    def _in_latents(self, z0: Tensor, problem: Problem) -> Tensor:
        return self._agree(z0, problem.decode, problem)

    def _agree(self, start: Tensor, image_of: Callable[[Tensor], Tensor], problem: Problem) -> Tensor:
        """Adam from `start`; an image stops, and costs nothing more, once its mean squared residual is ≤ σ²."""
        variable = start.detach().clone()
        momentum, square = torch.zeros_like(variable), torch.zeros_like(variable)
        rows, left = torch.arange(len(variable), device=variable.device), problem
        for n in range(1, self.iterations + 1):
            with torch.enable_grad():
                point = variable[rows].requires_grad_(True)
                error = left.y_BCHW - left.operator.A(image_of(point))
                objective = error.square().sum() + self.proximal * (point - start[rows]).square().sum()
            far = error.detach().square().flatten(1).mean(dim=1) > (2 * left.noise_std_B).square()
            if not far.any():
                break
            (gradient,) = torch.autograd.grad(objective, point)
            if not far.all():
                rows, gradient, left = rows[far], gradient[far], left.select(far)
            momentum[rows] = BETA_1 * momentum[rows] + (1 - BETA_1) * gradient
            square[rows] = BETA_2 * square[rows] + (1 - BETA_2) * gradient.square()
            height = (square[rows] / (1 - BETA_2**n)).sqrt() + 1e-8
            variable[rows] -= self.learning_rate / (1 - BETA_1**n) * momentum[rows] / height
        return variable
