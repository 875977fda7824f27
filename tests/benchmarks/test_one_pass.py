"""The methods that need no denoiser, through the restorer's own measurements and estimates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.experiment_photos import Photos
from benchmarks.observations import Observed, observe
from benchmarks.one_pass import BASELINES, restore_in_one_pass
from benchmarks.swinir import SwinIR, load_swinir
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import DegradationConfig, Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import estimate, load_severity_encoder
from tests.conftest import TinyModels
from tests.support.models import SIDE

BLUR = DegradationConfig("gaussian_blur", {"std": [0.3, 3.0]})


@pytest.fixture(scope="module")
def swinir(tmp_path_factory: pytest.TempPathFactory) -> SwinIR:
    folder = tmp_path_factory.mktemp("swinir")
    torch.manual_seed(0)
    model = SwinIR(channels=8, depths=(2,), heads=2, window=4, degradation="gaussian_blur")
    torch.nn.init.normal_(model.last[0].weight, std=0.1)
    model.save_pretrained(folder)
    return load_swinir(str(folder))


@pytest.fixture(scope="module")
def prior(tiny_models: TinyModels) -> LatentPrior:
    return load_prior(tiny_models.prior)


@pytest.fixture
def restorer(prior: LatentPrior, tiny_models: TinyModels) -> Restorer:
    return make(prior, tiny_models, BLUR)


@pytest.fixture(scope="module")
def photos(photo: Tensor) -> Photos:
    x = torch.stack([photo[:, 100 : 100 + SIDE, 40 * n : 40 * n + SIDE] for n in range(3)])
    return Photos([str(n) for n in range(3)], ["", "", ""], x)


def make(prior: LatentPrior, models: TinyModels, degradation: DegradationConfig) -> Restorer:
    recipe = Recipe(degradation, solver=SolverConfig(steps=len(prior.schedule)))
    return Restorer(recipe, prior, load_severity_encoder(models.encoder), measurement="simulated")


def restored(name: str, batches: list[Observed], restorer: Restorer, swinir: SwinIR) -> Tensor:
    return torch.stack(restore_in_one_pass(name, batches, restorer, swinir if name == "swinir" else None))


@pytest.mark.parametrize("name", BASELINES)
def test_each_image_is_restored_alone(name: str, restorer: Restorer, photos: Photos, swinir: SwinIR):
    x = restored(name, observe(restorer, photos), restorer, swinir)
    assert x.shape == photos.x_NCHW.shape
    assert x.abs().max() <= 1
    alone = [Photos([key], [""], photos.x_NCHW[n : n + 1]) for n, key in enumerate(photos.keys)]
    expected = torch.cat([restored(name, observe(restorer, one), restorer, swinir) for one in alone])
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_the_autoencoder_is_the_decoded_estimate(restorer: Restorer, photos: Photos, swinir: SwinIR):
    batches = observe(restorer, photos)
    assert restorer.encoder is not None
    with torch.no_grad():
        said = estimate(restorer.encoder, restorer.prior, batches[0].measured.seen_BCHW)
        expected = restorer.prior.decode(said.z_hat_BCHW).clamp(-1, 1)
    assert torch.equal(restored("autoencoder", batches, restorer, swinir), expected)


@pytest.mark.parametrize("name", BASELINES)
def test_a_measurement_of_another_size_is_restored_at_the_images(
    name: str, prior: LatentPrior, tiny_models: TinyModels, photos: Photos, swinir: SwinIR
):
    restorer = make(prior, tiny_models, DegradationConfig("super_resolution", {"scale": 2}))
    batches = observe(restorer, photos)
    assert batches[0].measured.y_BCHW.shape[-1] == SIDE // 2
    assert restored(name, batches, restorer, swinir).shape == photos.x_NCHW.shape
