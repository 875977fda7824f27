from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close

from flashray.degradations import make_degradation
from flashray.degradations.simulate import degrade, spread_noise_std
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.severity import Severity, SeverityEncoder, estimate
from flashray.severity.fusion import fuse
from flashray.severity.loss import FLOOR, position_error
from flashray.training.photo_windows import random_views
from flashray.training.severity_task import (
    ORDERING_LEVELS,
    BeyondConfig,
    SeverityConfig,
    SeverityTask,
    ordering_accuracy,
    relative_error,
    severity_figures,
)
from flashray.training.train_severity import parameter_ranges, start_from
from tests.support.models import SIDE, dc, severity_encoder, unet

BLUR = make_degradation("gaussian_blur")
NOISE = (0.05, 0.05)
SMALL = SeverityConfig(widths=(8, 12, 16), blocks=(1, 1, 1), crop=SIDE)


class Pixels(nn.Module):
    """An autoencoder whose latents are the pixels."""

    def encode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent=x)

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=z)


def pixel_prior() -> LatentPrior:
    return LatentPrior(Pixels(), nn.Identity(), NoiseSchedule.from_scheduler_config({}), SIDE)


def tiny_prior() -> LatentPrior:
    return LatentPrior(dc(), unet(), NoiseSchedule.from_scheduler_config({}), SIDE, scale=2.5).requires_grad_(False)


def tiny_task(photo: Tensor, config: SeverityConfig) -> SeverityTask:
    prior = tiny_prior()
    ranges = {"blur_std": [0.3, 3.0]}
    encoder = severity_encoder(prior, parameter_ranges=ranges, widths=config.widths, blocks=config.blocks)
    return SeverityTask(encoder.train(), prior, BLUR, NOISE, config, crops(photo, 2))


def windows(photo: Tensor) -> Tensor:
    return ((crops(photo, 4) + 1) * 127.5).to(torch.uint8)


def crops(photo: Tensor, count: int) -> Tensor:
    return torch.stack([photo[:, 20 * n : 20 * n + SIDE, 15 * n : 15 * n + SIDE] for n in range(count)])


class Oracle:
    """ẑ = y, and as σ̂ a function of the true error. It must be asked batch by batch and level by level."""

    def __init__(self, x_NCHW: Tensor, sigma=lambda true: true) -> None:
        self.batches = x_NCHW.split(16)
        self.sigma, self.calls = sigma, 0
        self.true: list[Tensor] = []
        self.factor = 1

    def __call__(self, y: Tensor, e: Tensor) -> Severity:
        x = self.batches[self.calls // ORDERING_LEVELS]
        self.calls += 1
        error_Bhw = position_error(y, x)
        self.true.append(error_Bhw.mean(dim=(1, 2)).sqrt())
        factor = (self.sigma(self.true[-1]) / self.true[-1])[:, None, None]
        log_variance = (factor.square() * error_Bhw).log()
        return Severity(y, log_variance, torch.full_like(error_Bhw, 0.25), y.new_zeros(len(y), 0, 2), y[:, :0])


@pytest.mark.parametrize("count", [1, 16, 21])
def test_an_encoder_that_knows_its_error_has_perfect_figures(photo: Tensor, count: int):
    x = crops(photo, count)
    oracle = Oracle(x)
    figures = severity_figures(oracle, pixel_prior(), BLUR, (0.0, 0.0), x)  # type: ignore[arg-type]
    assert oracle.calls == len(oracle.batches) * ORDERING_LEVELS
    assert figures["ordering"] == figures["ordering_true"] == 1
    assert figures["spearman_sigma"] == pytest.approx(1)
    assert figures["spearman_map"] == pytest.approx(1, abs=1e-5)
    assert figures["sigma_error"] == pytest.approx(0, abs=1e-6)
    assert figures["spearman_level"] == pytest.approx(figures["spearman_level_true"])
    assert figures["sigma_hat_mean"] == pytest.approx(figures["sigma_true_mean"])
    assert figures["sigma_true_mean"] > 0
    assert figures["latent_mse"] == figures["latent_mse_of_y"]  # ẑ is y
    assert figures["y_psnr"] == figures["decoded_psnr"] == pytest.approx(figures["fused_psnr"], abs=1e-4)


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
    assert figures["latent_mse"] == pytest.approx((true**2).mean(), rel=1e-5)


@pytest.mark.parametrize("wrong", [lambda true: 1 / true, lambda true: torch.full_like(true, 0.0)])
def test_wrong_way_round_or_constant_severity_orders_nothing(photo: Tensor, wrong: Any):
    x = crops(photo, 4)
    figures = severity_figures(Oracle(x, wrong), pixel_prior(), BLUR, (0.0, 0.0), x)  # type: ignore[arg-type]
    assert figures["ordering"] == 0
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
    task = tiny_task(photo, SMALL).eval()
    torch.manual_seed(1)
    first = task.validate()
    torch.manual_seed(2)
    assert task.validate() == first


@pytest.mark.parametrize(("lambda_sigma", "lambda_parameters"), [(0.1, 0.02), (1.0, 0.0), (0.0, 0.5)])
def test_the_task_trains_the_encoder_and_nothing_else(photo: Tensor, lambda_sigma: float, lambda_parameters: float):
    config = dataclasses.replace(SMALL, lambda_sigma=lambda_sigma, lambda_parameters=lambda_parameters)
    task = tiny_task(photo, config)
    terms = task(windows(photo), torch.Generator().manual_seed(0))
    assert set(terms) == {"loss", "latent", "sigma", "parameters"}
    terms["loss"].backward()
    assert all(parameter.grad is None for parameter in task.prior.parameters())
    assert all(parameter.grad is None for parameter in task.model.weight_head.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.model.net.trunk.parameters())
    of_z, of_sigma, _, of_parameters = (
        sum(parameter.grad.abs().sum().item() for parameter in head.parameters() if parameter.grad is not None)
        for head in task.model.net.heads
    )
    assert of_z > 0
    assert (of_sigma > 0) == (lambda_sigma > 0)
    assert (of_parameters > 0) == (lambda_parameters > 0)


def test_the_terms_are_those_of_the_losses(photo: Tensor):
    task = tiny_task(photo, SMALL)
    torch.manual_seed(0)
    terms = task(windows(photo), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = random_views(windows(photo), SIDE, generator, SMALL.widest)
    y, parameters = degrade(x, BLUR, NOISE, generator)
    severity = task.model(y, task.prior.encode(y))
    error = position_error(severity.z_hat_BCHW, task.prior.encode(x))
    wanted = 2 * (parameters["blur_std"] - 0.3) / 2.7 - 1
    mean, log_variance = severity.parameters_BP2[:, 0].unbind(1)
    of_parameters = 0.5 * (((mean - wanted) ** 2 + FLOOR) / log_variance.exp() + log_variance).mean()
    assert_close(terms["latent"], error.mean())
    assert_close(terms["parameters"], of_parameters)
    of_z = (error / severity.sigma_Bhw).mean()
    assert_close(terms["loss"], of_z + 0.1 * terms["sigma"] + 0.02 * of_parameters)


def test_the_fusion_weight_is_trained_alone_and_last(photo: Tensor):
    task = tiny_task(photo, dataclasses.replace(SMALL, part="fusion"))
    terms = task(windows(photo), torch.Generator().manual_seed(0))
    assert set(terms) == {"loss"}
    terms["loss"].backward()
    trained = {name for name, parameter in task.model.named_parameters() if parameter.grad is not None}
    assert trained == {f"net.heads.2.{name}" for name, _ in task.model.weight_head.named_parameters()}
    assert all(parameter.grad.abs().sum() > 0 for parameter in task.model.weight_head.parameters())
    assert all(parameter.grad is None for parameter in task.prior.parameters())


def test_the_fused_image_is_that_of_the_corrected_one(photo: Tensor):
    task = tiny_task(photo, dataclasses.replace(SMALL, part="fusion"))
    y = crops(photo, 2)
    severity = task.model(y, task.prior.encode(y))
    decoded = task.prior.decode(severity.z_hat_BCHW).clamp(-1, 1)
    assert_close(task.fused(y, severity), fuse(y, decoded, severity.weight_Bhw, 4, (SIDE, SIDE)))
    no_weight, residual = torch.zeros_like(severity.weight_Bhw), torch.full_like(y, 0.1)
    corrected = severity._replace(weight_Bhw=no_weight, residual_BCHW=residual)
    assert_close(task.fused(y, corrected), y + 0.1)


def test_the_relative_error_is_the_squared_error_over_that_of_y(photo: Tensor):
    x = crops(photo, 2)
    y = torch.stack([x[0] + 0.1, x[1]])  # the second is undamaged
    assert relative_error(x, y, x).item() == 0
    assert relative_error(y, y, x).item() == pytest.approx(0.5 * 0.01 / (0.01 + 1e-4), rel=1e-3)
    assert_close(relative_error(x + 0.05, y, x), torch.tensor([0.0025 / 0.0101, 0.0025 / 1e-4]).mean())


def test_the_residual_is_trained_alone(photo: Tensor):
    prior, noise = tiny_prior(), (0.0, 0.0)
    config = dataclasses.replace(SMALL, part="residual")
    encoder = severity_encoder(prior, "photo", parameter_ranges={}, residual=True).train()
    task = SeverityTask(encoder, prior, make_degradation("photo", {}), noise, config, crops(photo, 2))
    terms = task(windows(photo), torch.Generator().manual_seed(0))
    terms["loss"].backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert trained == {f"net.detail.{name}" for name, _ in encoder.net.detail.named_parameters()}
    assert {"corrected_psnr", "y_psnr"} <= set(task.validate())
    with pytest.raises(ConfigError, match=r"severity.part residual: encoders of gaussian_blur have none"):
        tiny_task(photo, config)


@pytest.mark.parametrize(
    "settings", [{"narrowest": 0.0}, {"narrowest": 2.0}, {"widest": 0.5}, {"whole": 1.5}, {"grain": -0.1}]
)
def test_bad_views_are_config_errors(settings: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        SeverityConfig(**settings)  # type: ignore[arg-type]


def test_a_share_of_each_batch_is_degraded_beyond_the_family(photo: Tensor):
    beyond = BeyondConfig(0.25, {"std": [5.0, 6.0]}, [0.4, 0.5])
    task = tiny_task(photo, dataclasses.replace(SMALL, beyond=beyond))
    x = crops(photo, 8)
    y, parameters = task.measure(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    low, high = BLUR.std  # type: ignore[attr-defined]
    blur, noise = parameters["blur_std"], parameters["noise_std"]
    assert ((blur[:2] >= 5) & (blur[:2] <= 6)).all()
    assert ((noise[:2] >= 0.4) & (noise[:2] <= 0.5)).all()
    assert ((blur[2:] >= low) & (blur[2:] <= high)).all()
    assert (noise[2:] == NOISE[0]).all()
    assert (y[:2] - x[:2]).std() > 0.7  # noise of .4 on [0, 1] is .8 on [-1, 1]
    assert (y[2:] - x[2:]).std() < 0.6


def test_without_a_share_beyond_a_batch_is_the_family_alone(photo: Tensor):
    task, x = tiny_task(photo, SMALL), crops(photo, 4)
    torch.manual_seed(0)
    y, _ = task.measure(x, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    expected, _ = degrade(x, BLUR, NOISE, torch.Generator().manual_seed(0))
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    "settings", [{"share": 1.0}, {"share": -0.1}, {"noise_std": [0.4, 0.1]}, {"settings": {"preset": "fixed"}}]
)
def test_bad_settings_beyond_the_family_are_config_errors(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"severity.beyond.{next(iter(settings))}"):
        BeyondConfig(**settings)


def test_an_unknown_setting_beyond_the_family_is_named(photo: Tensor):
    with pytest.raises(ConfigError, match="stdd"):
        tiny_task(photo, dataclasses.replace(SMALL, beyond=BeyondConfig(0.1, {"stdd": [1, 2]})))


def test_every_photo_of_a_batch_is_degraded_with_its_own_severity(photo: Tensor, monkeypatch: pytest.MonkeyPatch):
    task = tiny_task(photo, SMALL)
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


@pytest.mark.parametrize(
    ("name", "settings", "noise", "expected"),
    [
        ("gaussian_blur", {"std": [0.5, 2.0]}, (0.05, 0.05), {"blur_std": [0.5, 2.0]}),
        ("gaussian_blur", {"std": [1.0, 1.0]}, (0.05, 0.05), {}),
        ("gaussian_blur", {"std": [0.5, 2.0]}, (0.0, 0.2), {"blur_std": [0.5, 2.0], "noise_std": [0.0, 0.2]}),
        ("random_inpainting", {"missing": [0.1, 0.8]}, (0.05, 0.05), {"missing": [0.1, 0.8]}),
        ("jpeg", {"quality": [10, 60]}, (0.0, 0.0), {"quality": [10.0, 60.0]}),
        ("photo", {}, (0.0, 0.2), {}),
    ],
)
def test_what_severity_decides_can_be_predicted(
    name: str, settings: dict[str, Any], noise: tuple[float, float], expected: dict[str, list[float]]
):
    found = parameter_ranges(make_degradation(name, settings), noise)
    assert set(found) == set(expected)
    for key, (low, high) in expected.items():
        assert found[key] == pytest.approx([low, high], rel=1e-5)


def test_an_encoder_of_another_family_gives_its_trunk_and_the_heads_that_both_have(tmp_path: Path):
    prior = LatentPrior(dc(), unet(), NoiseSchedule.from_scheduler_config({}), SIDE)
    small = {"widths": (8, 12), "blocks": (1, 1)}
    given = severity_encoder(prior, parameter_ranges={}, **small)
    with torch.no_grad():
        for value in given.parameters():
            value.normal_()
    given.save_pretrained(tmp_path / "given")
    taken = severity_encoder(prior, parameter_ranges={"blur_std": [0.3, 3.0]}, **small)
    own = {name: value.clone() for name, value in taken.state_dict().items()}
    start_from(taken, str(tmp_path / "given"))
    shared = given.state_dict()
    assert any(name not in shared for name in own)  # the head of the parameter
    for name, value in taken.state_dict().items():
        assert torch.equal(value, shared.get(name, own[name]))
    other = severity_encoder(prior, parameter_ranges={}, widths=(8, 16), blocks=(1, 1))
    with pytest.raises(ConfigError, match="given: it lacks heads of this family"):
        start_from(
            severity_encoder(prior, parameter_ranges={"a": [0, 1]}, **small), str(tmp_path / "given"), whole=True
        )
    with pytest.raises(ConfigError, match=r"given: its trunk has widths \[8, 12\] and blocks \[1, 1\]; give"):
        start_from(other, str(tmp_path / "given"))


def test_a_deeper_trunk_starts_as_the_shallower_one(tmp_path: Path):
    """New blocks begin as the identity, so it says the same; a shallower trunk than the given one is refused."""
    prior = LatentPrior(dc(), unet(), NoiseSchedule.from_scheduler_config({}), SIDE)
    given = severity_encoder(prior, parameter_ranges={}, widths=(8, 12), blocks=(1, 1))
    given.save_pretrained(tmp_path / "given")
    settings = {"degradation_settings": {}, "noise_std": 0.05, "parameter_ranges": {}}
    deeper = SeverityEncoder.from_prior(prior, "gaussian_blur", **settings, widths=(8, 12), blocks=(2, 3))
    start_from(deeper, str(tmp_path / "given"))
    y = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    expected, found = (estimate(encoder, prior, y) for encoder in (given, deeper.eval()))
    assert (expected.z_hat_BCHW - prior.encode(y)).std() > 0.01
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    deeper.save_pretrained(tmp_path / "deeper")
    with pytest.raises(ConfigError, match=r"deeper: its trunk has widths \[8, 12\] and blocks \[2, 3\]; give"):
        start_from(given, str(tmp_path / "deeper"))


@pytest.mark.parametrize("name", ["motion_blur", "nonlinear_blur", "box_inpainting", "random_inpainting"])
def test_seeds_and_angles_are_not_predicted(name: str):
    """They are drawn and not decided by the severity: at both of its ends they may be anything."""
    for seed in range(3):
        torch.manual_seed(seed)
        found = parameter_ranges(make_degradation(name, {}), (0.0, 0.0))
        assert set(found) == {make_degradation(name, {}).parameter_names[0]}


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
    y, parameters = degrade(x, family, NOISE, torch.Generator().manual_seed(0))
    assert set(parameters) == {*family.parameter_names, "noise_std"}
    assert y.shape == x.shape
    figures = severity_figures(Oracle(x), pixel_prior(), family, (0.0, 0.0), x)  # type: ignore[arg-type]
    assert figures["ordering_true"] > 0.9  # one mask or path an image, harder from level to level


def test_smaller_measurements_are_shown_at_the_images_size(photo: Tensor):
    x, family = crops(photo, 2), make_degradation("super_resolution", {"scale": 4})
    assert degrade(x, family, NOISE, torch.Generator().manual_seed(0))[0].shape == x.shape
    figures = severity_figures(Oracle(x), pixel_prior(), family, NOISE, x)  # type: ignore[arg-type]
    assert figures["sigma_true_mean"] > 0.1


def test_noise_of_a_range_is_drawn_for_each_image(monkeypatch: pytest.MonkeyPatch):
    x, identity = torch.zeros(64, 3, 32, 32), make_degradation("gaussian_blur", {"std": [1e-3, 1e-3]})
    fixed, free = (torch.Generator().manual_seed(0) for _ in "ab")
    torch.manual_seed(0)
    y, parameters = degrade(x, identity, (0.01, 0.2), free)
    std_B = y.flatten(1).std(dim=1) / 2
    assert_close(parameters["noise_std"], std_B, rtol=0.1, atol=0)
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


def test_views_that_are_no_whole_latents_are_refused(photo: Tensor):
    with pytest.raises(ConfigError, match=r"severity\.crop is 30 pixels; give a multiple of 4, the latent factor"):
        tiny_task(photo, dataclasses.replace(SMALL, crop=30))


def test_a_family_that_does_not_fit_the_views_is_refused(photo: Tensor):
    task = tiny_task(photo, SeverityConfig(widths=(8,), blocks=(1,)))
    wide = make_degradation("nonlinear_blur", {"motion": [0, 20]})
    with pytest.raises(ConfigError, match="motion of 20 pixels"):
        SeverityTask(task.model, task.prior, wide, NOISE, task.config, task.val)
