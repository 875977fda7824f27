"""The input of a solver at one step, and the reverse-diffusion step that all solvers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from flashray.degradations.base import Operator


def per_image(value_B: Tensor) -> Tensor:
    """[B] → [B, 1, 1, 1]."""
    return value_B[:, None, None, None]


def norm(x_BCHW: Tensor) -> Tensor:
    """[B] Euclidean norm of each image alone, so that no result depends on the other images of the batch."""
    return torch.linalg.vector_norm(x_BCHW.flatten(1), dim=1)


@dataclass(frozen=True)
class Step:
    """One update of a batch in which every image is at its own step."""

    z_BCHW: Tensor  # the latents z_i; they require grad if the solver needs the gradient
    z0_BCHW: Tensor  # the denoiser's estimate ẑ0 (Tweedie's posterior mean), a function of z_BCHW
    epsilon_BCHW: Tensor  # the denoiser's noise estimate
    alpha_B: Tensor  # ᾱ before this update
    alpha_prev_B: Tensor  # and after it
    timestep_B: Tensor  # the denoiser's time: 0 … 999, of flows up to 1000 and no whole number
    index_B: Tensor  # the step's index on the (respaced) schedule
    noise: Callable[[int], Tensor]  # a function of a stream number, giving this step's own standard normal noise
    eta: float = 1.0  # DDIM's η; 1 is ancestral sampling

    def with_z0(self, z0_BCHW: Tensor) -> Step:
        """This step with another ẑ0, and with the ε that z then has in it: (z - √ᾱ ẑ0)/√(1-ᾱ)."""
        alpha = per_image(self.alpha_B)
        epsilon = (self.z_BCHW - alpha.sqrt() * z0_BCHW) / (1 - alpha).sqrt()
        return dataclasses.replace(self, z0_BCHW=z0_BCHW, epsilon_BCHW=epsilon)


@dataclass(frozen=True)
class Problem:
    """The measurements of the batch: y = A(x) + n."""

    y_BCHW: Tensor  # measurements in [-1, 1]
    operator: Operator  # A, bound to the batch's parameters
    noise_std_B: Tensor  # the noise's standard deviation on the [0, 1] scale
    encode: Callable[[Tensor], Tensor]  # the prior's maps between images in [-1, 1] and latents of unit variance
    decode: Callable[[Tensor], Tensor]
    # `LatentGrid.norm_scale`; a solver that follows the gradient of a norm multiplies it by this, so that a step size
    # means the same at every size. Exactly 1 at the prior's own size
    norm_scale: float = 1.0
    # (h, w) of the latent positions that hold the photo; norms of latents are over these
    valid: tuple[int | None, int | None] = (None, None)

    def select(self, rows: Tensor) -> Problem:
        """The problem of some of the images: `rows` are indices, or a mask."""
        chosen = (self.y_BCHW[rows], self.operator.select(rows), self.noise_std_B[rows])
        return Problem(*chosen, self.encode, self.decode, self.norm_scale, self.valid)


class Solver(Protocol):
    """One update rule.

    With `needs_gradient` the engine keeps the graph from z to ẑ0; `needs_adjoint` restricts it to affine operators.
    """

    name: ClassVar[str]
    needs_gradient: ClassVar[bool]
    needs_adjoint: ClassVar[bool]

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        """z_next_BCHW, without graph."""
        ...


@torch.no_grad()
def reverse_step(step: Step, noise_BCHW: Tensor) -> Tensor:
    """The unconditional step z_i → z_prev: DDIM with η (Song et al. 2021, eq. 12 and 16).

    σ² = η² (1-ᾱ_prev)/(1-ᾱ) (1 - ᾱ/ᾱ_prev);  z_prev = √ᾱ_prev ẑ0 + √(1 - ᾱ_prev - σ²) ε + σ n.
    With η = 1 this is DDPM's ancestral step with the posterior mean and variance; where ᾱ_prev = 1 no noise is added.
    """
    alpha, alpha_prev = per_image(step.alpha_B), per_image(step.alpha_prev_B)
    variance = step.eta**2 * (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    direction = (1 - alpha_prev - variance).clamp(min=0).sqrt()
    mean = alpha_prev.sqrt() * step.z0_BCHW + direction * step.epsilon_BCHW
    return mean + variance.clamp(min=0).sqrt() * noise_BCHW
