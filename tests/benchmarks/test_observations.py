"""Observations of photos: part of them, another belief in the operator, and where σ̂ comes from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.experiment_photos import Photos
from benchmarks.observations import Observed, believing, first_of, mean_flash_step, observe
from benchmarks.sigma_sources import with_sigma
from flashray.errors import ConfigError
from flashray.prior import load_prior
from flashray.recipe import DegradationConfig, Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import Start, load_severity_encoder
from tests.conftest import TinyModels
from tests.support.models import SIDE


@pytest.fixture(scope="module")
def restorer(tiny_models: TinyModels) -> Restorer:
    prior = load_prior(tiny_models.prior)
    blur = DegradationConfig("gaussian_blur", {"std": [0.3, 3.0]})
    recipe = Recipe(blur, solver=SolverConfig(steps=len(prior.schedule)))
    return Restorer(recipe, prior, load_severity_encoder(tiny_models.encoder), measurement="simulated")


@pytest.fixture(scope="module")
def batches(restorer: Restorer, photo: Tensor) -> list[Observed]:
    """18 photos: one batch and two more."""
    x = torch.stack([photo[:, 20 * n : 20 * n + SIDE, 25 * n : 25 * n + SIDE] for n in range(18)])
    return observe(restorer, Photos([str(n) for n in range(18)], [""] * 18, x))


def sigma(batches: list[Observed]) -> list[float]:
    return torch.cat([one.estimate.sigma_hat_B for one in batches]).tolist()


def test_the_first_photos_are_the_first_of_all_batches(batches: list[Observed]):
    assert [len(one.measured) for one in batches] == [16, 2]
    assert [len(one.measured) for one in first_of(batches, 17)] == [16, 1]
    (few,) = first_of(batches, 3)
    assert few.measured.keys == ["0", "1", "2"]
    assert sigma([few]) == sigma(batches)[:3]
    assert few.estimate.severity is not None
    assert all(len(value) == 3 for value in few.estimate.severity)


def test_a_severity_is_every_photos(restorer: Restorer, photo: Tensor):
    photos = Photos(["a", "b"], ["", ""], photo[:, :SIDE, :SIDE].expand(2, -1, -1, -1))
    (one,) = observe(restorer, photos, severity=1.0)
    assert one.measured.parameters["blur_std"].tolist() == pytest.approx([3.0, 3.0])


def test_a_wrong_belief_changes_the_operator_and_nothing_that_was_observed(batches: list[Observed], restorer: Restorer):
    (wrong, _) = believing(batches, restorer.degradation, {"blur_std": 2.0})
    true = batches[0]
    torch.testing.assert_close(wrong.measured.parameters["blur_std"], 2 * true.measured.parameters["blur_std"])
    assert torch.equal(wrong.measured.y_BCHW, true.measured.y_BCHW)
    assert wrong.estimate is true.estimate
    assert not torch.allclose(wrong.measured.operator.A(true.x_BCHW), true.measured.operator.A(true.x_BCHW))
    with pytest.raises(ConfigError):
        believing(batches, restorer.degradation, {"blur_std": -1.0})


def test_sigma_is_the_encoders_the_true_one_or_a_calibrated_one(batches: list[Observed], restorer: Restorer):
    assert sigma(with_sigma("encoder", batches, restorer.prior)) == sigma(batches)
    true = [value for one in batches for value in one.sigma_true_B.tolist()]
    assert sigma(with_sigma("true", batches, restorer.prior)) == true
    for name in ("wavelet_noise", "residual_std"):
        found = sigma(with_sigma(name, batches, restorer.prior, aside=batches))
        assert sum(found) / 18 == pytest.approx(sum(true) / 18, rel=1e-3)  # isotonic regression keeps the mean


def test_a_fixed_start_spends_the_mean_of_flash_rounded_up(batches: list[Observed], restorer: Restorer):
    start = Start(mode="fixed", sigma_scale=0.5)
    flash, _ = Start(sigma_scale=0.5).start_step(torch.tensor(sigma(batches)), restorer.schedule)
    assert mean_flash_step(start, batches, restorer) == math.ceil(flash.double().mean().item())
