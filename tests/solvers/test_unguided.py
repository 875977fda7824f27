"""The solver that knows no measurement: the prior's own reverse diffusion from wherever it starts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from flashray.degradations import make_degradation
from flashray.engine import advance
from flashray.seeding import STREAM_SOLVER, normal
from flashray.solvers import make_solver
from flashray.solvers.solver import Problem
from tests.support.golden import toy_prior
from tests.support.oracle import PRIOR, draw

BLUR = make_degradation("gaussian_blur", {"kernel_size": 15})


def problem_of(y: Tensor, std: float) -> Problem:
    operator = BLUR.bind({"blur_std": torch.full((len(y),), std, dtype=y.dtype)}, (y.shape[2], y.shape[3]))
    return Problem(y, operator, torch.full((len(y),), 0.05, dtype=y.dtype), lambda x: x, lambda z: z)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_its_step_is_ddims_whatever_the_measurement(eta: float):
    """Equation 12 of Song et al. 2021, each image at its own step and with the noise of its own seed."""
    prior = toy_prior().double()
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1
    schedule, seed, i = prior.schedule.respaced(10), torch.tensor([3, 4]), torch.tensor([6, 2])
    z = torch.randn(prior.encode(y).shape, generator=generator, dtype=torch.float64)
    solver = make_solver("unguided", {})
    found = advance(prior, solver, schedule, problem_of(y, 2.0), z, i, seed, eta)
    assert torch.equal(found, advance(prior, solver, schedule, problem_of(-y, 0.5), z, i, seed, eta))
    assert torch.equal(found, advance(prior, solver, schedule, None, z, i, seed, eta))
    alpha, before = (
        values[i][:, None, None, None] for values in (schedule.alphas_cumprod, schedule.alphas_cumprod_prev)
    )
    epsilon = prior.epsilon(z, schedule.timesteps[i])
    sigma = eta * ((1 - before) / (1 - alpha) * (1 - alpha / before)).sqrt()
    noise = normal(seed, i, tuple(z.shape[1:]), STREAM_SOLVER)
    z0 = (z - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
    expected = before.sqrt() * z0 + (1 - before - sigma**2).sqrt() * epsilon + sigma * noise
    torch.testing.assert_close(found, expected)


def test_from_pure_noise_it_draws_from_the_prior():
    """Not from the posterior: the measurement of this problem is known to it, and makes no difference."""
    found = draw(make_solver("unguided", {}), steps=100, samples=2000)
    torch.testing.assert_close(found.mean_D, PRIOR.mean_D, rtol=0, atol=0.1)
    torch.testing.assert_close(found.covariance_DD, PRIOR.covariance_DD, rtol=0, atol=0.15)


def test_it_needs_nothing_of_the_operator():
    solver = make_solver("unguided", {})
    assert (solver.needs_gradient, solver.needs_adjoint) == (False, False)
    assert not dataclasses.fields(solver)  # type: ignore[arg-type]
