from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import BASELINES, SwinIR, load_baseline
from flashray.degradations import Operator, make_degradation
from flashray.errors import ConfigError
from flashray.prior import LatentPrior, load_prior
from flashray.severity import load_severity_encoder
from tests.conftest import TinyModels
from tests.support.models import SIDE

BLUR = make_degradation("gaussian_blur")


@pytest.fixture(scope="module")
def sources(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A saved model for each baseline, trained (so they say) on Gaussian blur."""
    folder = tmp_path_factory.mktemp("swinir")
    torch.manual_seed(0)
    model = SwinIR(channels=8, depths=(2,), heads=2, window=4, degradation="gaussian_blur")
    torch.nn.init.normal_(model.last[0].weight, std=0.1)
    model.save_pretrained(folder)
    return {"autoencoder": tiny_models.encoder, "swinir": str(folder)}


@pytest.fixture(scope="module")
def prior(tiny_models: TinyModels) -> LatentPrior:
    return load_prior(tiny_models.prior)


@pytest.fixture(scope="module")
def y() -> Tensor:
    return 3 * torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def blur(count: int) -> Operator:
    return BLUR.bind(BLUR.parameters_at(torch.linspace(0, 1, count)), (SIDE, SIDE))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_restores_each_image_alone(name: str, sources: dict[str, str], prior: LatentPrior, y: Tensor):
    baseline = load_baseline(name, sources[name], prior, "gaussian_blur")
    assert baseline.degradation == "gaussian_blur"
    x = baseline.restore(y, blur(3))
    assert x.shape == y.shape
    assert x.min() >= -1
    assert x.max() <= 1
    assert not torch.equal(x, y.clamp(-1, 1))
    alone = torch.cat([baseline.restore(one[None], blur(1)) for one in y])
    torch.testing.assert_close(x, alone, rtol=1e-4, atol=1e-5)


def test_the_autoencoder_is_the_decoded_estimate(
    sources: dict[str, str], prior: LatentPrior, tiny_models: TinyModels, y: Tensor
):
    x = load_baseline("autoencoder", sources["autoencoder"], prior, "gaussian_blur").restore(y, blur(3))
    z_hat, _ = load_severity_encoder(tiny_models.encoder)(y)
    assert torch.equal(x, prior.decode(z_hat).clamp(-1, 1))


@pytest.mark.parametrize("name", BASELINES)
def test_a_measurement_of_another_size_is_restored_at_the_images(
    name: str, sources: dict[str, str], prior: LatentPrior, y: Tensor
):
    family = make_degradation("super_resolution", {"scale": 2})
    operator = family.bind(family.sample_parameters(torch.Generator().manual_seed(0), 3), (SIDE, SIDE))
    small = operator.A(y)
    assert small.shape[-1] == SIDE // 2
    assert load_baseline(name, sources[name], prior, "gaussian_blur").restore(small, operator).shape == y.shape


@pytest.mark.parametrize("name", BASELINES)
def test_another_family_is_a_warning_with_both_names(
    name: str, sources: dict[str, str], prior: LatentPrior, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        load_baseline(name, sources[name], prior, "gaussian_blur")
        assert not caplog.records
        load_baseline(name, sources[name], prior, "random_inpainting")
    (record,) = caplog.records
    assert f"baseline {name}" in record.getMessage()
    assert "was trained on gaussian_blur, and the degradation is random_inpainting" in record.getMessage()


def test_an_unknown_baseline_is_a_config_error(prior: LatentPrior, tmp_path: Path):
    with pytest.raises(ConfigError, match="baseline 'edsr' is not known; known: autoencoder, swinir"):
        load_baseline("edsr", str(tmp_path), prior, "gaussian_blur")
