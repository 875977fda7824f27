from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashray.severity.loss import FLOOR, map_loss, normal_loss, position_error
from tests.support.paper_loss import error_std, severity_loss


def case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    z_hat, z0 = (torch.randn(5, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in "ab")
    x_hat, x = (torch.randn(5, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in "ab")
    return z_hat, z0, torch.rand(5, generator=generator, dtype=torch.float64), x_hat, x


def test_error_std_is_numpys_unbiased_one_without_the_mean():
    z_hat, z0, *_ = case()
    expected = [np.std((a - b).numpy(), ddof=1) for a, b in zip(z_hat, z0, strict=True)]
    np.testing.assert_allclose(error_std(z_hat, z0).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(error_std(z_hat + 3.0, z0), error_std(z_hat, z0))
    assert (error_std(z0, z0) == 0).all()


def test_error_std_estimates_the_std_of_gaussian_errors():
    noise = torch.randn(4, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.01, 0.1, 0.5, 2.0])
    estimate = error_std(noise * scale[:, None, None, None], torch.zeros_like(noise))
    torch.testing.assert_close(estimate, scale, rtol=4 / math.sqrt(2 * noise[0].numel()), atol=0)


@pytest.mark.parametrize(("target", "scale"), [("std", np.abs), ("variance", np.square)])
def test_each_term_is_a_mean_and_the_loss_their_weighted_sum(target, scale):
    z_hat, z0, sigma_hat, x_hat, x = case()
    terms = severity_loss(z_hat, z0, sigma_hat, x_hat, x, lambda_sigma=0.7, lambda_image=0.3, target=target)
    sigma_bar = np.array([np.std((a - b).numpy(), ddof=1) for a, b in zip(z_hat, z0, strict=True)])
    assert terms["latent"].item() == pytest.approx(np.mean((z_hat - z0).numpy() ** 2))
    assert terms["sigma"].item() == pytest.approx(np.mean((scale(sigma_bar) - scale(sigma_hat.numpy())) ** 2))
    assert terms["image"].item() == pytest.approx(np.mean((x_hat - x).numpy() ** 2))
    total = terms["latent"] + 0.7 * terms["sigma"] + 0.3 * terms["image"]
    assert terms["loss"].item() == pytest.approx(total.item())


def test_no_weight_depends_on_the_batch_size():
    z_hat, z0, sigma_hat, x_hat, x = case()
    once = severity_loss(z_hat, z0, sigma_hat, x_hat, x)
    twice = severity_loss(*(torch.cat([value, value]) for value in (z_hat, z0, sigma_hat, x_hat, x)))
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value)


def test_the_perfect_answer_costs_nothing_and_sigma_alone_is_pulled_to_the_error():
    z_hat, z0, _, _, x = case()
    sigma_bar = error_std(z_hat, z0)
    assert severity_loss(z_hat, z0, sigma_bar, None, x, lambda_image=0.0)["sigma"] == 0
    assert severity_loss(z0, z0, torch.zeros(5, dtype=torch.float64), x, x)["loss"] == 0
    sigma_hat = (sigma_bar + 0.1).requires_grad_()
    severity_loss(z_hat, z0, sigma_hat, None, x, lambda_image=0.0)["loss"].backward()
    assert (sigma_hat.grad > 0).all()


def test_sigma_terms_gradient_reaches_the_estimate_too():
    """σ̄ is a function of ẑ: the paper's objective does not stop its gradient."""
    z_hat, z0, sigma_hat, _, x = case()
    z_hat.requires_grad_()
    severity_loss(z_hat, z0, sigma_hat, None, x, lambda_image=0.0)["sigma"].backward()
    assert z_hat.grad.abs().sum() > 0


def maps(height: int = 3, width: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ẑ, z₀ and ln σ̂², in float64."""
    generator = torch.Generator().manual_seed(1)
    z_hat, z0 = (torch.randn(2, 4, height, width, generator=generator, dtype=torch.float64) for _ in "ab")
    return z_hat, z0, torch.randn(2, height, width, generator=generator, dtype=torch.float64)


def test_the_maps_terms_by_hand():
    z_hat, z0, log_variance = maps()
    terms = map_loss(z_hat, z0, log_variance, lambda_sigma=0.3)
    error = ((z_hat - z0).numpy() ** 2).mean(axis=1)
    np.testing.assert_allclose(position_error(z_hat, z0).numpy(), error, rtol=1e-12)
    variance = np.exp(log_variance.numpy())
    sigma = 0.5 * np.mean((error + FLOOR) / variance + np.log(variance))
    assert terms["latent"].item() == pytest.approx(error.mean())
    assert terms["sigma"].item() == pytest.approx(sigma)
    assert terms["loss"].item() == pytest.approx(np.mean(error / np.sqrt(variance)) + 0.3 * sigma)


def test_the_position_error_keeps_the_mean_that_the_standard_deviation_removes():
    z0 = torch.zeros(1, 4, 2, 2)
    torch.testing.assert_close(position_error(z0 + 0.5, z0), torch.full((1, 2, 2), 0.25))
    assert error_std(z0 + 0.5, z0) == 0


def test_the_normal_loss_is_least_at_the_true_squared_error_everywhere():
    _, _, start = maps()
    error = torch.rand(start.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.01
    best = error.log().requires_grad_()
    least = normal_loss(error, best)
    (gradient,) = torch.autograd.grad(least, best)
    assert gradient.abs().max() < 1e-12
    assert least.item() == pytest.approx(0.5 * (1 + error.log().mean().item()))
    for offset in (-1.0, -0.1, 0.1, 1.0):
        changed = best.detach().clone()
        changed[0, 1, 2] += offset
        assert normal_loss(error, changed) > least


def test_the_normal_losss_gradient_is_the_numeric_one():
    z_hat, z0, log_variance = maps(2, 2)
    error = position_error(z_hat, z0).requires_grad_()
    assert torch.autograd.gradcheck(normal_loss, (error, log_variance.requires_grad_()))


def test_an_exact_estimate_asks_for_the_floor_and_not_for_minus_infinity():
    _, z0, log_variance = maps()
    log_variance = torch.full_like(log_variance, math.log(FLOOR)).requires_grad_()
    (gradient,) = torch.autograd.grad(map_loss(z0, z0, log_variance)["loss"], log_variance)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("lambda_sigma", [0.0, 0.1, 5.0])
def test_neither_of_the_two_estimates_is_trained_by_the_others_term(lambda_sigma: float):
    z_hat, z0, log_variance = maps()
    z_hat.requires_grad_()
    log_variance.requires_grad_()
    terms = map_loss(z_hat, z0, log_variance, lambda_sigma)
    of_z, of_sigma = torch.autograd.grad(terms["loss"], (z_hat, log_variance))
    expected = 2 * (z_hat - z0) / z_hat.numel() * (-0.5 * log_variance).exp()[:, None]
    torch.testing.assert_close(of_z, expected.detach())  # whatever the weight of the other term
    error = position_error(z_hat, z0) + FLOOR
    expected = lambda_sigma * 0.5 * (1 - error / log_variance.exp()) / log_variance.numel()
    torch.testing.assert_close(of_sigma, expected.detach())
