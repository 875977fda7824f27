"""Latent-DPS where everything is known: a Gaussian prior with its exact denoiser, a linear decoder, A = identity."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from flashray.engine import advance
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_START, normal
from flashray.solvers import Problem, make_solver

SCHEDULE = NoiseSchedule.from_scheduler_config({"beta_schedule": "scaled_linear", "beta_start": 1e-4, "beta_end": 0.02})
MEAN = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.5, 0.0], [-0.3, 0.2, 0.7]], dtype=torch.float64)
COVARIANCE = FACTOR @ FACTOR.T
DECODER = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.8, -0.2], [0.4, 0.0, 1.1], [0.2, 0.2, 0.2]], dtype=torch.float64)
SAMPLES = 3000


class GaussianDenoiser(nn.Module):
    """E[ε | z_t] of z₀ ~ N(MEAN, COVARIANCE): √(1-ᾱ) (ᾱ Σ + (1-ᾱ) I)⁻¹ (z - √ᾱ μ)."""

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        alpha = SCHEDULE.alphas_cumprod[timestep][:, None, None]
        precision = torch.linalg.inv(alpha * COVARIANCE + (1 - alpha) * torch.eye(3, dtype=torch.float64))
        centred = z.flatten(1)[:, :, None] - alpha.sqrt() * MEAN[:, None]
        return SimpleNamespace(sample=((1 - alpha).sqrt() * (precision @ centred))[..., None])


class LinearDecoder(nn.Module):
    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.einsum("dc,bchw->bdhw", DECODER, z))


class Identity:
    measure: ClassVar[Any] = staticmethod(lambda x: x)


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    return LatentPrior(LinearDecoder(), GaussianDenoiser(), SCHEDULE, 1).double()


def draw(prior: LatentPrior, dc_step: float, y: Tensor, samples: int, steps: int) -> Tensor:
    """[samples, 3] latents drawn by the chain with a data term towards y."""
    solver, schedule = make_solver("latent_dps", {"dc_step": dc_step}), SCHEDULE.respaced(steps)
    seed_B = torch.arange(samples)
    measured = y[None, :, None, None].expand(samples, -1, -1, -1)
    problem = Problem(measured, Identity(), torch.zeros(samples), prior.encode, prior.decode)
    z = normal(seed_B, torch.zeros_like(seed_B), (3, 1, 1), STREAM_START).double()
    for i in reversed(range(steps)):
        z = advance(prior, solver, schedule, problem, z, torch.full((samples,), i), seed_B)
    return z.flatten(1)


def chain_moments(steps: int) -> tuple[Tensor, Tensor]:
    """The exact mean and covariance that the unconditional ancestral chain ends with: every step is affine.

    With z0 = A z + a, DDPM's step is z' = (p A + q I) z + p a + s n (Ho et al. 2020, equation 7).
    """
    schedule, eye = SCHEDULE.respaced(steps), torch.eye(3, dtype=torch.float64)
    mean, covariance = torch.zeros(3, dtype=torch.float64), eye
    for i in reversed(range(steps)):
        bar, bar_prev = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
        alpha, beta = bar / bar_prev, 1 - bar / bar_prev
        gain = bar.sqrt() * COVARIANCE @ torch.linalg.inv(bar * COVARIANCE + (1 - bar) * eye)
        offset = MEAN - gain @ (bar.sqrt() * MEAN)
        p, q = bar_prev.sqrt() * beta / (1 - bar), alpha.sqrt() * (1 - bar_prev) / (1 - bar)
        step = p * gain + q * eye
        mean = step @ mean + p * offset
        covariance = step @ covariance @ step.T + (1 - bar_prev) / (1 - bar) * beta * eye
    return mean, covariance


def test_the_chains_own_moments_are_nearly_the_priors():
    """What 1000 ancestral steps lose, in closed form: under 1 % of the covariance."""
    mean, covariance = chain_moments(1000)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.01)
    assert torch.linalg.matrix_norm(covariance - COVARIANCE) < 0.01 * torch.linalg.matrix_norm(COVARIANCE)


@pytest.mark.parametrize("steps", [50, 250])
def test_without_a_data_term_the_chain_samples_the_prior(prior: LatentPrior, steps: int):
    mean, covariance = chain_moments(steps)
    drawn = draw(prior, 0.0, torch.zeros(4, dtype=torch.float64), SAMPLES, steps)
    spread = 4.5 / SAMPLES**0.5
    assert ((drawn.mean(dim=0) - mean).abs() < spread * covariance.diagonal().sqrt()).all()
    scale = (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
    assert ((torch.cov(drawn.T) - covariance).abs() < spread * 2**0.5 * scale).all()


def test_the_data_term_moves_the_mean_towards_the_measurement(prior: LatentPrior):
    """A sanity bound, not an oracle of the posterior.

    The residual of the mean falls with the strength of the data term: below a quarter of the prior's at dc_step 0.02,
    and to nearly none at 0.1, which overfits as DPS is known to.
    """
    z_true = MEAN + FACTOR @ torch.tensor([1.2, -0.8, 1.0], dtype=torch.float64)
    y = DECODER @ z_true
    residuals = []
    for dc_step in (0.0, 0.005, 0.02, 0.1):
        mean = draw(prior, dc_step, y, 400, 200).mean(dim=0)
        residuals.append((y - DECODER @ mean).norm().item())
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[2] < 0.25 * residuals[0]
    assert residuals[3] < 0.02 * residuals[0]


def test_the_gradient_is_of_each_images_own_unsquared_norm(prior: LatentPrior):
    """One step by hand: with D and the denoiser linear, ∇‖y - W ẑ0(z)‖ = -Gᵀ Wᵀ r/‖r‖."""
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(5, n, 1, 1, generator=generator, dtype=torch.float64) for n in (3, 4))
    seed_B, step_B = torch.arange(5), torch.tensor([3, 200, 500, 800, 999])
    problem = Problem(y, Identity(), torch.zeros(5), prior.encode, prior.decode)
    plain, pulled = (
        advance(prior, make_solver("latent_dps", {"dc_step": dc}), SCHEDULE, problem, z, step_B, seed_B)
        for dc in (0.0, 0.3)
    )
    for b, step in enumerate(step_B.tolist()):
        bar = SCHEDULE.alphas_cumprod[step]
        gain = bar.sqrt() * COVARIANCE @ torch.linalg.inv(bar * COVARIANCE + (1 - bar) * torch.eye(3).double())
        z0 = gain @ (z[b].flatten() - bar.sqrt() * MEAN) + MEAN
        residual = y[b].flatten() - DECODER @ z0
        gradient = -gain.T @ DECODER.T @ residual / residual.norm()
        torch.testing.assert_close((pulled - plain)[b].flatten(), -0.3 * gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", [{"dc_step": -0.1}, {"dc_step": float("nan")}, {"dc_step": "1"}, {"step": 1.0}])
def test_bad_settings_are_config_errors(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="latent_dps"):
        make_solver("latent_dps", settings)


def test_an_unknown_solver_is_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match=r"solver 'flash' is not known; known: .*latent_dps"):
        make_solver("flash")
