from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from flashray.errors import ConfigError
from flashray.recipe import load_recipe
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_START, image_seed, normal
from flashray.severity import Start

LDM = {"num_train_timesteps": 1000, "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
FULL = NoiseSchedule.from_scheduler_config(LDM)
SCHEDULES = {"1000": FULL, "97": FULL.respaced(97), "1": FULL.respaced(1)}
STARTS = [
    Start(formula=formula, c=c, sigma_scale=scale, mode=mode)
    for formula in ("paper", "schedule")
    for c in (0.4, 1.0, 1.8)
    for scale in (0.5, 1.0, 1.5)
    for mode in ("flash", "full")
]
SIGMAS = torch.tensor([0.0, 1e-20, 1e-3, 0.1, 0.5, 0.66, 0.99, 1.0, 1.5, 40.0, 1e30, math.inf, math.nan])


def z_of(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def seeds_of(count: int) -> torch.Tensor:
    return torch.tensor([image_seed(0, str(n)) for n in range(count)])


def noise_of(seed_B: torch.Tensor) -> torch.Tensor:
    return normal(seed_B, torch.zeros_like(seed_B), (4, 8, 8), STREAM_START)


@pytest.mark.parametrize("steps", SCHEDULES)
@pytest.mark.parametrize("start", STARTS, ids=str)
def test_any_sigma_gives_a_step_within_the_chain_and_finite_latents(start: Start, steps: str):
    schedule = SCHEDULES[steps]
    step, fallback = start.start_step(SIGMAS, schedule)
    assert step.dtype == torch.long
    assert fallback.dtype == torch.bool
    assert ((step >= 0) & (step <= len(schedule))).all()
    assert (step[fallback] == len(schedule)).all()
    z_hat = z_of(len(SIGMAS))
    z_hat[-2:] = torch.nan  # an estimate as broken as its σ̂ must not spoil the full chain
    latents = start.latent(z_hat, SIGMAS, step, schedule, seeds_of(len(SIGMAS)))
    assert torch.isfinite(latents).all()
    assert latents.dtype == z_hat.dtype


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_beyond_the_formula_the_image_takes_the_full_chain_and_says_so(c: float, scale: float):
    start = Start(formula="paper", c=c, sigma_scale=scale)
    limit = 1 / (math.sqrt(c) * scale)
    sigma = torch.tensor([0.99 * limit, 1.01 * limit, math.inf, math.nan])
    step, fallback = start.start_step(sigma, FULL)
    assert fallback.tolist() == [False, True, True, True]
    assert step[1:].tolist() == [1000] * 3
    assert step[0] < 1000
    seed_B = seeds_of(4)
    torch.testing.assert_close(start.latent(z_of(4), sigma, step, FULL, seed_B)[1:], noise_of(seed_B)[1:])


def test_the_schedule_formula_ignores_c():
    sigma = torch.tensor([0.3, 0.9, 0.999, 1.0])
    step, fallback = Start(formula="schedule", c=100.0).start_step(sigma, FULL)
    assert fallback.tolist() == [False, False, False, True]
    assert torch.equal(step[:3], FULL.start_step(sigma[:3]))


def test_full_mode_starts_everything_at_pure_noise_without_calling_it_a_fallback():
    sigma, seed_B, z_hat = torch.tensor([0.0, 0.2, math.nan]), seeds_of(3), z_of(3)
    for formula in ("paper", "schedule"):
        start = Start(mode="full", formula=formula)
        step, fallback = start.start_step(sigma, SCHEDULES["97"])
        assert step.tolist() == [97] * 3
        assert not fallback.any()
        assert torch.equal(start.latent(z_hat, sigma, step, SCHEDULES["97"], seed_B), noise_of(seed_B))


@pytest.mark.parametrize("c", [0.5, 1.0, 1.7])
def test_the_paper_formula_exactly_and_in_its_moments(c: float):
    count = 300
    sigma = torch.full((count,), 0.6)
    start = Start(formula="paper", c=c)
    step, _ = start.start_step(sigma, FULL)
    seed_B, z_hat = seeds_of(count), z_of(1).expand(count, -1, -1, -1)
    latents = start.latent(z_hat, sigma, step, FULL, seed_B)
    variance = c * 0.36
    exact = math.sqrt(1 - variance) * z_hat + math.sqrt(variance) * noise_of(seed_B)
    torch.testing.assert_close(latents, exact, rtol=0, atol=1e-6)
    noise = latents - math.sqrt(1 - variance) * z_hat
    numbers = noise.numel()
    assert abs(noise.mean()) < 4 * math.sqrt(variance / numbers)
    assert abs(noise.var() / variance - 1) < 4 * math.sqrt(2 / numbers)


@pytest.mark.parametrize("steps", ["1000", "97"])
def test_the_schedule_formula_has_the_noise_that_the_first_update_expects(steps: str):
    schedule = SCHEDULES[steps]
    sigma = torch.tensor([0.2, 0.5, 0.8, 0.95])
    start = Start(formula="schedule")
    step, _ = start.start_step(sigma, schedule)
    assert (step > 0).all()
    seed_B, z_hat = seeds_of(4), z_of(4)
    alpha = schedule.alphas_cumprod[step - 1].float()[:, None, None, None]  # the engine's first update is at step - 1
    expected = alpha.sqrt() * z_hat + (1 - alpha).sqrt() * noise_of(seed_B)
    torch.testing.assert_close(start.latent(z_hat, sigma, step, schedule, seed_B), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("formula", ["paper", "schedule"])
def test_an_image_that_needs_no_step_keeps_its_estimate(formula: Any):
    start = Start(formula=formula)
    sigma = torch.tensor([0.0, 1e-4])
    step, fallback = start.start_step(sigma, FULL)
    assert step.tolist() == [0, 0]
    assert not fallback.any()
    z_hat = z_of(2)
    assert torch.equal(start.latent(z_hat, sigma, step, FULL, seeds_of(2)), z_hat)


def test_sigma_scale_multiplies_sigma():
    sigma = torch.tensor([0.1, 0.3, 0.45])
    seed_B, z_hat = seeds_of(3), z_of(3)
    for formula in ("paper", "schedule"):
        scaled, plain = Start(formula=formula, sigma_scale=2.0), Start(formula=formula)
        step, _ = scaled.start_step(sigma, FULL)
        assert torch.equal(step, plain.start_step(2 * sigma, FULL)[0])
        torch.testing.assert_close(
            scaled.latent(z_hat, sigma, step, FULL, seed_B), plain.latent(z_hat, 2 * sigma, step, FULL, seed_B)
        )


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_latents_do_not_depend_on_the_batch(start: Start):
    sigma, seed_B, z_hat = SIGMAS[:9], seeds_of(9), z_of(9)
    step, fallback = start.start_step(sigma, FULL)
    latents = start.latent(z_hat, sigma, step, FULL, seed_B)
    for n in range(9):
        one = slice(n, n + 1)
        alone, alone_fallback = start.start_step(sigma[one], FULL)
        assert (alone[0], alone_fallback[0]) == (step[n], fallback[n])
        assert torch.equal(start.latent(z_hat[one], sigma[one], alone, FULL, seed_B[one])[0], latents[n])


@pytest.mark.parametrize(
    "settings",
    [{"mode": "half"}, {"formula": "mine"}, {"c": 0.0}, {"c": math.nan}, {"sigma_scale": -1.0}, {"sigma_scale": 0.0}],
)
def test_bad_settings_are_config_errors(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Start(**settings)


@pytest.mark.parametrize("formula", ["paper", "schedule"])
def test_without_strength_nothing_is_denoised(formula: Any):
    start, sigma = Start(strength=0.0, formula=formula), torch.tensor([0.0, 0.3, 0.99, 3.0])
    step, fallback = start.start_step(sigma, FULL)
    assert step.tolist() == [0] * 4
    assert not fallback.any()
    assert torch.equal(start.latent(z_of(4), sigma, step, FULL, seeds_of(4)), z_of(4))


@pytest.mark.parametrize(("scale", "strength"), [(1.0, 0.5), (0.8, 1.5), (2.0, 0.1)])
def test_strength_multiplies_the_recipes_scale(scale: float, strength: float):
    sigma = torch.linspace(0.01, 1.5, 30)
    ours, theirs = Start(sigma_scale=scale, strength=strength), Start(sigma_scale=scale * strength)
    assert ours.scale == theirs.scale
    for one, other in zip(ours.start_step(sigma, FULL), theirs.start_step(sigma, FULL), strict=True):
        assert torch.equal(one, other)


def test_more_strength_never_starts_later_in_the_chain():
    sigma = torch.linspace(0.01, 0.6, 20)
    steps = [Start(strength=strength).start_step(sigma, FULL)[0] for strength in (0.0, 0.2, 0.7, 1.0, 1.4)]
    assert all((more >= less).all() for less, more in itertools.pairwise(steps))
    assert (steps[-1][1:] > steps[0][1:]).all()


@pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan])
def test_a_bad_strength_is_a_config_error(strength: float):
    with pytest.raises(ConfigError, match=r"start\.strength is .*; give a finite number ≥ 0"):
        Start(strength=strength)


def test_strength_scales_the_noise_of_a_fixed_start_by_the_papers_formula():
    changes = {"start": {"mode": "fixed", "step": 5, "formula": "paper", "strength": 0.5}}
    start = load_recipe("gaussian_blur_flash_latent_dps", changes).start  # is not refused
    z, sigma, step, seed = torch.zeros(1, 2, 4, 4), torch.tensor([0.4]), torch.tensor([5]), torch.tensor([3])
    half, whole = (one.latent(z, sigma, step, FULL, seed) for one in (start, dataclasses.replace(start, strength=1.0)))
    torch.testing.assert_close(2 * half, whole)
