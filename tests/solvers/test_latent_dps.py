"""Latent-DPS by hand, and the plain chain that every solver corrects, where all moments are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashray.engine import advance
from flashray.errors import ConfigError
from flashray.solvers import make_solver
from tests.support.oracle import DECODER, KEPT, PRIOR, SCHEDULE, Gaussian, Y, draw, make_prior, make_problem

SAMPLES = 3000
EYE = torch.eye(3, dtype=torch.float64)


def chain_moments(steps: int) -> Gaussian:
    """The exact moments that the unconditional ancestral chain ends with: every step is affine.

    With z0 = A z + a, DDPM's step is z' = (p A + q I) z + p a + s n (Ho et al. 2020, equation 7).
    """
    schedule = SCHEDULE.respaced(steps)
    mean, covariance = torch.zeros(3, dtype=torch.float64), EYE
    for i in reversed(range(steps)):
        bar, bar_prev = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
        alpha, beta = bar / bar_prev, 1 - bar / bar_prev
        gain = denoiser_gain(bar)
        offset = PRIOR.mean_D - gain @ (bar.sqrt() * PRIOR.mean_D)
        p, q = bar_prev.sqrt() * beta / (1 - bar), alpha.sqrt() * (1 - bar_prev) / (1 - bar)
        step = p * gain + q * EYE
        mean = step @ mean + p * offset
        covariance = step @ covariance @ step.T + (1 - bar_prev) / (1 - bar) * beta * EYE
    return Gaussian(mean, covariance)


def denoiser_gain(bar: Tensor) -> Tensor:
    """∂ẑ0/∂z of the exact denoiser."""
    return bar.sqrt() * PRIOR.covariance_DD @ torch.linalg.inv(bar * PRIOR.covariance_DD + (1 - bar) * EYE)


def test_the_chains_own_moments_are_nearly_the_priors():
    """What 1000 ancestral steps lose, in closed form: under 1 % of the covariance."""
    chain = chain_moments(1000)
    torch.testing.assert_close(chain.mean_D, PRIOR.mean_D, rtol=0, atol=0.01)
    lost = torch.linalg.matrix_norm(chain.covariance_DD - PRIOR.covariance_DD)
    assert lost < 0.01 * torch.linalg.matrix_norm(PRIOR.covariance_DD)


@pytest.mark.parametrize("steps", [50, 250])
def test_without_a_data_term_the_chain_samples_the_prior(steps: int):
    expected = chain_moments(steps)
    drawn = draw(make_solver("latent_dps", {"dc_step": 0.0}), steps, SAMPLES)
    spread, variance = 4.5 / SAMPLES**0.5, expected.covariance_DD.diagonal()
    assert ((drawn.mean_D - expected.mean_D).abs() < spread * variance.sqrt()).all()
    scale = (variance[:, None] * variance).sqrt()
    assert ((drawn.covariance_DD - expected.covariance_DD).abs() < spread * 2**0.5 * scale).all()


def test_the_gradient_is_of_each_images_own_unsquared_norm():
    """One step by hand: with D and the denoiser linear, ∇‖y - A D ẑ0(z)‖ = -Gᵀ (A D)ᵀ r/‖r‖."""
    prior, forward = make_prior(), KEPT @ DECODER
    z = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seed_B, step_B = torch.arange(5), torch.tensor([3, 200, 500, 800, 999])
    plain, pulled = (
        advance(prior, make_solver("latent_dps", {"dc_step": dc}), SCHEDULE, make_problem(5, prior), z, step_B, seed_B)
        for dc in (0.0, 0.3)
    )
    for b, step in enumerate(step_B.tolist()):
        bar = SCHEDULE.alphas_cumprod[step]
        gain = denoiser_gain(bar)
        z0 = gain @ (z[b].flatten() - bar.sqrt() * PRIOR.mean_D) + PRIOR.mean_D
        residual = Y - forward @ z0
        gradient = -gain.T @ forward.T @ residual / residual.norm()
        torch.testing.assert_close((pulled - plain)[b].flatten(), -0.3 * gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", [{"dc_step": -0.1}, {"dc_step": float("nan")}, {"dc_step": "1"}, {"step": 1.0}])
def test_bad_settings_are_config_errors(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="latent_dps"):
        make_solver("latent_dps", settings)


def test_an_unknown_solver_is_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match=r"solver 'flash' is not known; known: .*latent_dps"):
        make_solver("flash")
