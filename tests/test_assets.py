"""What comes inside the package works together, on photos that none of it was trained on."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.sample_photos import sample_crops
from flashray.degradations import make_degradation
from flashray.degradations.simulate import add_noise
from flashray.metrics import psnr
from flashray.prior import LatentPrior, bundled, load_prior
from flashray.recipe import Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import SeverityEncoder, Start, estimate, load_severity_encoder
from flashray.training.severity_task import ordering_accuracy


@pytest.fixture(scope="module")
def prior() -> LatentPrior:
    return load_prior("bundled")


@pytest.fixture(scope="module")
def encoder() -> SeverityEncoder:
    return load_severity_encoder("bundled:gaussian_blur")


@pytest.fixture(scope="module")
def crops() -> dict[str, torch.Tensor]:
    return sample_crops(8)


def test_binaries_stay_under_96_megabytes():
    files = [path for path in bundled().rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < 96e6  # a wheel of 100 MB is the largest that PyPI takes


def test_every_model_says_how_it_was_made():
    folders = [path.parent for path in bundled().glob("prior/card.json")]
    folders += [path.parent for path in bundled().glob("severity/*/card.json")]
    assert len(folders) >= 2
    for folder in folders:
        card = json.loads((folder / "card.json").read_text())
        for stage in card["trained"].values():
            assert stage["command"].startswith("python jobs/train_")
            assert {"seed", "seconds", "samples"} <= set(stage)
        assert (folder / "README.md").is_file()


def test_autoencoder_keeps_photos_and_latents_have_unit_mean_square(prior: LatentPrior, crops: dict[str, torch.Tensor]):
    x = torch.stack(list(crops.values()))
    with torch.no_grad():
        z = prior.encode(x)
        assert psnr(prior.decode(z), x).mean() > 26
    assert 0.5 < z.square().mean() < 2


def test_sigma_hat_orders_blur_levels_of_the_same_photo(prior: LatentPrior, encoder: SeverityEncoder):
    x = torch.stack(list(sample_crops(63).values()))  # all there are: of eight, one pair is more than a percent
    degradation = make_degradation("gaussian_blur")
    rows = []
    for n, level in enumerate(torch.linspace(0, 1, 5)):
        operator = degradation.bind(degradation.parameters_at(level.expand(len(x))), (128, 128))
        y = add_noise(operator.A(x), torch.full((len(x),), 0.05), torch.arange(len(x)) + 100 * n)
        rows.append(estimate(encoder, prior, y).sigma_Bhw.square().mean(dim=(1, 2)).sqrt())
    assert ordering_accuracy(torch.stack(rows, dim=1)) > 0.88  # of garments it orders .95; these are not


def test_flash_restores_photos_that_it_has_never_seen(
    prior: LatentPrior, encoder: SeverityEncoder, crops: dict[str, torch.Tensor]
):
    x = torch.stack(list(crops.values()))
    solver = SolverConfig("latent_dps", steps=50, settings={"dc_step": 0.5})
    recipe = Recipe(start=Start(sigma_scale=0.5), solver=solver)
    restorer = Restorer(recipe, prior, encoder, measurement="simulated")
    photos = [restorer.measurer.photo(key, one) for key, one in crops.items()]
    restored = restorer.restore_photos(photos)
    assert restored.errors == [None] * len(x)
    assert len(set(restored.nfe)) > 1
    assert max(restored.nfe) < 25
    images = torch.stack([image for image in restored.images if image is not None])
    assert (psnr(images, x) - psnr(restorer.measure(photos).y_BCHW, x)).mean() > 1


def test_bundled_prior_opens_in_diffusers_and_samples():
    from diffusers import LDMPipeline

    pipeline = LDMPipeline.from_pretrained(bundled("prior"), low_cpu_mem_usage=False, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert images.shape == (1, 128, 128, 3)
