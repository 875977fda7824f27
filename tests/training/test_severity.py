from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from flashray.degradations import make_degradation
from flashray.degradations.noise import spread_noise_std
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.severity import SeverityEncoder, error_std
from flashray.training.degrade import degrade
from flashray.training.severity_task import (
    ORDERING_LEVELS,
    SeverityConfig,
    SeverityTask,
    ordering_accuracy,
    severity_figures,
)
from tests.support.models import SIDE, dc, unet

BLUR = make_degradation("gaussian_blur")
NOISE = (0.05, 0.05)


class Pixels(nn.Module):
    """An autoencoder whose latents are the pixels."""

    def encode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent=x)


def pixel_prior() -> LatentPrior:
    return LatentPrior(Pixels(), nn.Identity(), NoiseSchedule.from_scheduler_config({}), SIDE)


def tiny_task(photo: Tensor, config: SeverityConfig) -> SeverityTask:
    prior = LatentPrior(dc(), unet(), NoiseSchedule.from_scheduler_config({}), SIDE, scale=2.5).requires_grad_(False)
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05)
    return SeverityTask(encoder, prior, BLUR, NOISE, config, crops(photo, 2))


def crops(photo: Tensor, count: int) -> Tensor:
    return torch.stack([photo[:, 20 * n : 20 * n + SIDE, 15 * n : 15 * n + SIDE] for n in range(count)])


class Oracle:
    """ẑ = y, and as σ̂ a function of the true error. It must be asked batch by batch and level by level."""

    def __init__(self, x_NCHW: Tensor, sigma=lambda true: true) -> None:
        self.batches = x_NCHW.split(16)
        self.sigma, self.calls = sigma, 0
        self.true: list[Tensor] = []

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.batches[self.calls // ORDERING_LEVELS]
        self.calls += 1
        self.true.append(error_std(y, x))
        return y, self.sigma(self.true[-1])


@pytest.mark.parametrize("count", [1, 16, 21])
def test_an_encoder_that_knows_its_error_has_perfect_figures(photo: Tensor, count: int):
    x = crops(photo, count)
    oracle = Oracle(x)
    figures = severity_figures(oracle, pixel_prior(), BLUR, (0.0, 0.0), x)  # type: ignore[arg-type]
    assert oracle.calls == len(oracle.batches) * ORDERING_LEVELS
    assert figures["ordering"] == figures["ordering_true"] == 1
    assert figures["spearman_sigma"] == pytest.approx(1)
    assert figures["sigma_error"] == 0
    assert figures["spearman_level"] == pytest.approx(figures["spearman_level_true"])
    assert figures["sigma_hat_mean"] == figures["sigma_true_mean"] > 0


def test_figures_equal_scipys_on_the_same_numbers(photo: Tensor):
    x = crops(photo, 19)
    noise = torch.Generator().manual_seed(0)
    answers: list[Tensor] = []

    def wrong(true: Tensor) -> Tensor:
        answers.append(true * (0.5 + torch.rand(true.shape, generator=noise)))
        return answers[-1]

    oracle = Oracle(x, wrong)
    figures = severity_figures(oracle, pixel_prior(), BLUR, NOISE, x)  # type: ignore[arg-type]
    true, predicted = (
        torch.cat([torch.stack(rows[:10]), torch.stack(rows[10:])], dim=1).T.numpy() for rows in (oracle.true, answers)
    )
    assert true.shape == (19, 10)
    assert figures["spearman_sigma"] == pytest.approx(stats.spearmanr(predicted.ravel(), true.ravel())[0], abs=1e-5)
    level = np.tile(np.arange(10), (19, 1))
    assert figures["spearman_level"] == pytest.approx(stats.spearmanr(predicted.ravel(), level.ravel())[0], abs=1e-5)
    assert figures["spearman_level_true"] == pytest.approx(stats.spearmanr(true.ravel(), level.ravel())[0], abs=1e-5)
    assert figures["sigma_error"] == pytest.approx(np.abs(predicted - true).mean(), rel=1e-5)
    pairs = [(i, j) for i in range(10) for j in range(i + 1, 10)]
    by_hand = np.mean([row[i] < row[j] for row in predicted for i, j in pairs])
    assert figures["ordering"] == pytest.approx(by_hand)
    assert figures["ordering"] < figures["ordering_true"]
    # the pixels' own error has a mean of nearly zero, so its square is its variance
    assert figures["latent_mse"] == pytest.approx((true**2).mean(), rel=0.02)


@pytest.mark.parametrize(("sign", "value"), [(-1, 0.0), (0, 0.0)])
def test_wrong_way_round_or_constant_severity_orders_nothing(photo: Tensor, sign: int, value: float):
    x = crops(photo, 4)
    figures = severity_figures(Oracle(x, lambda true: sign * true), pixel_prior(), BLUR, (0.0, 0.0), x)  # type: ignore[arg-type]
    assert figures["ordering"] == value
    assert figures["ordering_true"] == 1


@pytest.mark.parametrize(
    ("rows", "accuracy"),
    [
        ([[1, 2, 3, 4]], 1),
        ([[4, 3, 2, 1]], 0),
        ([[1, 1, 1]], 0),
        ([[1, 3, 2]], 2 / 3),
        ([[1, 2], [2, 1]], 0.5),
        ([[1, 2, 3], [3, 2, 1], [1, 3, 2]], 5 / 9),
    ],
)
def test_ordering_accuracy_by_hand(rows: list[list[float]], accuracy: float):
    assert ordering_accuracy(torch.tensor(rows, dtype=torch.float32)) == pytest.approx(accuracy)


def test_the_same_validation_gives_the_same_figures(photo: Tensor):
    task = tiny_task(photo, SeverityConfig(crop=SIDE)).eval()
    torch.manual_seed(1)
    first = task.validate()
    torch.manual_seed(2)
    assert task.validate() == first


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
def test_the_task_trains_the_encoder_and_nothing_else(photo: Tensor, weights: tuple[float, float]):
    task = tiny_task(photo, SeverityConfig(*weights, crop=SIDE))
    window = ((crops(photo, 4) + 1) * 127.5).to(torch.uint8)
    terms = task(window, torch.Generator().manual_seed(0))
    assert terms["loss"].item() == pytest.approx(
        (terms["latent"] + weights[0] * terms["sigma"] + weights[1] * terms["image"]).item(), rel=1e-5
    )
    assert (terms["image"] == 0) == (weights[1] == 0)
    terms["loss"].backward()
    assert all(parameter.grad is None for parameter in task.prior.parameters())
    assert all(parameter.grad is not None for parameter in task.model.encoder.parameters())
    assert (task.model.head[1].weight.grad.abs().sum() > 0) == (weights[0] > 0)


def test_every_photo_of_a_batch_is_degraded_with_its_own_severity(photo: Tensor, monkeypatch: pytest.MonkeyPatch):
    task = tiny_task(photo, SeverityConfig(crop=SIDE))
    seen: list[Tensor] = []
    real = type(BLUR).bind

    def recording(self, parameters, size):
        seen.append(parameters["blur_std"])
        return real(self, parameters, size)

    monkeypatch.setattr(type(BLUR), "bind", recording)
    window = torch.zeros(64, 3, 40, 40, dtype=torch.uint8)
    task(window, torch.Generator().manual_seed(0))
    (std,) = seen
    assert len(std.unique()) == 64
    assert std.min() < 0.7
    assert std.max() > 2.6


def test_each_view_is_seen_at_several_severities(photo: Tensor, monkeypatch: pytest.MonkeyPatch):
    task = tiny_task(photo, SeverityConfig(crop=SIDE, levels=3, lambda_order=1.0))
    seen: list[Tensor] = []

    def recording(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return degrade(x, BLUR, NOISE, generator)

    monkeypatch.setattr(task, "degrade", recording)
    window = ((crops(photo, 4) + 1) * 127.5).to(torch.uint8)
    terms = task(window, torch.Generator().manual_seed(0))
    (x,) = seen
    assert len(x) == 12
    assert torch.equal(x.reshape(4, 3, *x.shape[1:]).amax(1), x.reshape(4, 3, *x.shape[1:]).amin(1))
    assert len(x[::3].flatten(1).unique(dim=0)) == 4
    assert terms["order"] > 0


def test_the_head_alone_is_trained(photo: Tensor):
    task = tiny_task(photo, SeverityConfig(crop=SIDE, only_head=True))
    window = ((crops(photo, 4) + 1) * 127.5).to(torch.uint8)
    task(window, torch.Generator().manual_seed(0))["loss"].backward()
    assert all(parameter.grad is None for parameter in task.model.encoder.parameters())
    assert task.model.head[1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("settings", [{"levels": 0}, {"lambda_order": 1.0}])
def test_an_order_needs_levels(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"severity\.levels"):
        SeverityConfig(**settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("random_inpainting", {}),
        ("box_inpainting", {"side": [4, 20]}),
        ("motion_blur", {"path": "random"}),
        ("nonlinear_blur", {}),
        ("jpeg", {}),
    ],
)
def test_other_families_are_degraded_to_images_and_ordered(photo: Tensor, name: str, settings: dict[str, Any]):
    x, family = crops(photo, 18), make_degradation(name, settings)
    y = degrade(x, family, NOISE, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    figures = severity_figures(Oracle(x), pixel_prior(), family, (0.0, 0.0), x)  # type: ignore[arg-type]
    assert figures["ordering_true"] > 0.9  # one mask or path an image, harder from level to level


def test_smaller_measurements_are_shown_at_the_images_size(photo: Tensor):
    x, family = crops(photo, 2), make_degradation("super_resolution", {"scale": 4})
    assert degrade(x, family, NOISE, torch.Generator().manual_seed(0)).shape == x.shape
    figures = severity_figures(Oracle(x), pixel_prior(), family, NOISE, x)  # type: ignore[arg-type]
    assert figures["sigma_true_mean"] > 0.1


def test_noise_of_a_range_is_drawn_for_each_image(monkeypatch: pytest.MonkeyPatch):
    x, identity = torch.zeros(64, 3, 32, 32), make_degradation("gaussian_blur", {"std": [1e-3, 1e-3]})
    fixed, free = (torch.Generator().manual_seed(0) for _ in "ab")
    torch.manual_seed(0)
    std_B = degrade(x, identity, (0.01, 0.2), free).flatten(1).std(dim=1) / 2
    assert std_B.min() > 0.009
    assert std_B.max() < 0.21
    assert std_B.max() - std_B.min() > 0.15
    # one number draws nothing: the severities of a training without a range are what they were
    expected = identity.sample_parameters(torch.Generator().manual_seed(0), 64)
    monkeypatch.setattr(type(identity), "sample_parameters", lambda self, generator, count: expected)
    degrade(x, identity, NOISE, fixed)
    assert torch.equal(fixed.get_state(), torch.Generator().manual_seed(0).get_state())


def test_noise_of_a_range_is_a_photos_own_at_validation():
    noise = spread_noise_std((0.01, 0.2), 0, 50)
    assert torch.equal(noise[16:32], spread_noise_std((0.01, 0.2), 16, 16))
    assert (noise.sort().values - torch.linspace(0.01, 0.2, 50)).abs().max() < 0.01
    assert torch.equal(spread_noise_std(NOISE, 3, 4), torch.full((4,), 0.05))


def test_figures_of_a_range_of_noise_are_those_of_each_photo(photo: Tensor):
    """More noise at the same blur is more error, so across photos noise and not blur decides."""
    x, oracles = crops(photo, 18), []
    for noise in ((0.0, 0.0), (0.0, 0.4)):
        oracles.append(Oracle(x))
        severity_figures(oracles[-1], pixel_prior(), BLUR, noise, x)  # type: ignore[arg-type]
    clean, noisy = (torch.cat([torch.stack(o.true[:10]), torch.stack(o.true[10:])], dim=1) for o in oracles)
    added_N = (noisy.square() - clean.square())[0]
    assert_close(added_N, (2 * spread_noise_std((0.0, 0.4), 0, 18)).square(), rtol=0.1, atol=0.01)


def test_a_family_that_does_not_fit_the_views_is_refused(photo: Tensor):
    task = tiny_task(photo, SeverityConfig())
    wide = make_degradation("nonlinear_blur", {"motion": [0, 20]})
    with pytest.raises(ConfigError, match="motion of 20 pixels"):
        SeverityTask(task.model, task.prior, wide, NOISE, task.config, task.val)
