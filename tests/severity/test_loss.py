from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flashray.severity import error_std, severity_loss


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


@pytest.mark.parametrize(("target", "scale"), [("std", np.abs), ("log_std", np.log), ("variance", np.square)])
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


def test_the_order_term_is_what_differs_between_degradations_of_a_photo():
    z_hat, z0, *_ = (value[:4] for value in case())
    sigma_bar = error_std(z_hat, z0)
    x = torch.zeros(4, 3, 8, 8)
    shifted = sigma_bar + torch.tensor([0.1, 0.1, 0.3, 0.3])  # one error a photo: no order is wrong
    terms = severity_loss(z_hat, z0, shifted, None, x, 2.0, 0.0, lambda_order=3.0, levels=2)
    assert terms["order"].item() == pytest.approx(0.0, abs=1e-12)
    crossed = sigma_bar + torch.tensor([0.1, -0.1, 0.5, 0.1])
    terms = severity_loss(z_hat, z0, crossed, None, x, 2.0, 0.0, lambda_order=3.0, levels=2)
    assert terms["order"].item() == pytest.approx((0.1**2 + 0.2**2) / 2)
    expected = terms["latent"] + 2.0 * terms["sigma"] + 3.0 * terms["order"]
    assert terms["loss"].item() == pytest.approx(expected.item())
