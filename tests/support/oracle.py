"""A problem whose posterior is known in closed form, for any solver.

Latents of three numbers from a Gaussian with its exact denoiser, a linear decoder to images of four, of which A keeps
two: p(z | y) is Gaussian too. The encoder pulls latents towards the plane that most of the prior's variance lies in, so
that the terms which ask for a fixed point of the autoencoder have something to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.distances.frechet import bures_distance
from flashray.degradations.base import AffineOperator
from flashray.engine import advance
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_START, normal
from flashray.solvers import Problem, Solver

SCHEDULE = NoiseSchedule.from_scheduler_config({"beta_schedule": "scaled_linear", "beta_start": 1e-4, "beta_end": 0.02})
NOISE_STD = 0.05  # of the measurement, on [0, 1]; twice that on [-1, 1]


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


NORMAL = matrix((2, -1, 2))[0] / 3  # of the plane
ACROSS = torch.outer(NORMAL, NORMAL)
MEAN = matrix((0.5, -1.0, 0.25))[0]
FACTOR = (torch.eye(3) - 0.9 * ACROSS) @ matrix((1.0, 0.0, 0.0), (0.6, 0.5, 0.0), (-0.3, 0.2, 0.7))
DECODER = matrix((1.0, 0.3, 0.0), (0.0, 0.8, -0.2), (0.4, 0.0, 1.1), (0.2, 0.2, 0.2))
PULL = 0.5  # E(D(z)) takes half of z's distance from the plane away
ENCODER = (torch.eye(3) - PULL * ACROSS) @ torch.linalg.pinv(DECODER)
KEPT = matrix((1, 0, 0, 0), (0, 0, 0, 1))
Y = KEPT @ DECODER @ (MEAN + FACTOR @ matrix((1.2, -0.8, 1.0))[0]) + 2 * NOISE_STD * matrix((0.5, -0.7))[0]


@dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) of latents, or the moments of samples."""

    mean_D: Tensor
    covariance_DD: Tensor

    @classmethod
    def of(cls, samples_ND: Tensor) -> Gaussian:
        return cls(samples_ND.mean(dim=0), samples_ND.T.cov())

    def given(self, forward_KD: Tensor, y_K: Tensor, std: float) -> Gaussian:
        """The posterior once y = forward z + n with n ~ N(0, std² I) was seen."""
        predicted = forward_KD @ self.covariance_DD @ forward_KD.T + std**2 * torch.eye(len(y_K))
        gain = self.covariance_DD @ forward_KD.T @ torch.linalg.inv(predicted)
        covariance = self.covariance_DD - gain @ forward_KD @ self.covariance_DD
        return Gaussian(self.mean_D + gain @ (y_K - forward_KD @ self.mean_D), covariance)


@dataclass(frozen=True)
class Distance:
    """How far two Gaussians are apart in mean and in covariance; together the 2-Wasserstein distance."""

    mean: float
    covariance: float

    @property
    def wasserstein(self) -> float:
        return math.hypot(self.mean, self.covariance)


PRIOR = Gaussian(MEAN, FACTOR @ FACTOR.T)
POSTERIOR = PRIOR.given(KEPT @ DECODER, Y, 2 * NOISE_STD)


def from_posterior(found: Gaussian) -> Distance:
    mean = torch.linalg.vector_norm(found.mean_D - POSTERIOR.mean_D).item()
    return Distance(mean, bures_distance(found.covariance_DD, POSTERIOR.covariance_DD) ** 0.5)


class Denoiser(nn.Module):
    """E[ε | z_t] of z₀ ~ N(μ, Σ): √(1-ᾱ) (ᾱ Σ + (1-ᾱ) I)⁻¹ (z - √ᾱ μ)."""

    def __init__(self, latents: Gaussian) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        alpha = SCHEDULE.alphas_cumprod[timestep][:, None, None]
        marginal = alpha * self.latents.covariance_DD + (1 - alpha) * torch.eye(3)
        centred = z.flatten(1)[:, :, None] - alpha.sqrt() * self.latents.mean_D[:, None]
        return SimpleNamespace(sample=((1 - alpha).sqrt() * torch.linalg.solve(marginal, centred))[..., None])


class LinearAutoencoder(nn.Module):
    def encode(self, x: Tensor) -> SimpleNamespace:
        offset = PULL * ACROSS @ MEAN  # the plane goes through the prior's mean
        return SimpleNamespace(latent=torch.einsum("cd,bdhw->bchw", ENCODER, x) + offset[:, None, None])

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.einsum("dc,bchw->bdhw", DECODER, z))


@dataclass(frozen=True)
class Selection(AffineOperator):
    """Two of an image's four numbers; the rows of A are orthonormal and sum to one."""

    def A_linear(self, x: Tensor) -> Tensor:
        return torch.einsum("kd,bdhw->bkhw", KEPT, x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return torch.einsum("kd,bkhw->bdhw", KEPT, y)


def make_prior(latents: Gaussian = PRIOR) -> LatentPrior:
    return LatentPrior(LinearAutoencoder(), Denoiser(latents), SCHEDULE, sample_size=1).double()


def make_problem(samples: int, prior: LatentPrior) -> Problem:
    y = Y[None, :, None, None].expand(samples, -1, -1, -1)
    return Problem(y, Selection(), torch.full((samples,), NOISE_STD).double(), prior.encode, prior.decode)


def draw(solver: Solver, steps: int, samples: int = 1500, latents: Gaussian = PRIOR) -> Gaussian:
    """The moments of what the solver draws from pure noise through the engine's own step, each sample from its seed."""
    prior, schedule = make_prior(latents), SCHEDULE.respaced(steps)
    problem, seed_B = make_problem(samples, prior), torch.arange(samples)
    z = normal(seed_B, torch.zeros_like(seed_B), (3, 1, 1), STREAM_START).double()
    for i in reversed(range(steps)):
        z = advance(prior, solver, schedule, problem, z, torch.full((samples,), i), seed_B)
    return Gaussian.of(z.flatten(1))
