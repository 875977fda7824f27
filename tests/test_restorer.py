"""The restorer on photos of any size."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.loading import load
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import DegradationConfig, Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import Start, estimate, load_severity_encoder
from tests.conftest import TinyModels
from tests.support.models import SIDE
from tests.support.windows import corners

SIZES = [(SIDE, SIDE), (SIDE + 19, SIDE + 10), (SIDE - 12, 2 * SIDE + 6)]  # one, four and three windows


@pytest.fixture(scope="module")
def prior(tiny_models: TinyModels) -> LatentPrior:
    return load_prior(tiny_models.prior)


@pytest.fixture
def restorer(prior: LatentPrior, tiny_models: TinyModels) -> Restorer:
    recipe = Recipe(DegradationConfig("gaussian_blur"), solver=SolverConfig(steps=12))
    return Restorer(recipe, prior, load_severity_encoder(tiny_models.encoder), measurement="simulated")


@pytest.fixture(scope="module")
def photos(photo: Tensor) -> dict[str, Tensor]:
    return {f"{h}x{w}": photo[:, 60 : 60 + h, 90 : 90 + w] for h, w in SIZES}


def test_photos_come_back_at_their_own_size_and_in_order(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    restored = restorer(list(photos.values()), keys=list(photos))
    assert restored.errors == [None] * len(photos)
    assert [tuple(image.shape[1:]) for image in restored.images if image is not None] == SIZES
    assert restored.nfe[0] == int(restored.nfe[0])  # one window


@pytest.mark.slow
def test_a_line_of_pixels_comes_back(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    line = photos["32x32"].flatten(1).repeat(1, 20)[:, :20_000]
    restored = restorer([line[:, None], line[:, :, None], line[:, :1, None]], keys=["wide", "tall", "dot"])
    assert restored.errors == [None] * 3
    assert [one.shape for one in restored.images if one is not None] == [(3, 1, 20_000), (3, 20_000, 1), (3, 1, 1)]


def test_a_photo_does_not_depend_on_the_others(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    together = restorer(list(photos.values()), keys=list(photos))
    for n, (key, x) in enumerate(photos.items()):
        alone = restorer(x, keys=[key])
        assert alone.images[0] is not None
        assert together.images[n] is not None
        torch.testing.assert_close(alone.images[0], together.images[n], rtol=0, atol=1e-4)
        assert (alone.nfe[0], alone.fallback[0]) == (together.nfe[n], together.fallback[n])


def test_a_window_has_the_root_mean_square_of_the_photos_map(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    x = list(photos.values())[1]
    measured = restorer.measure([restorer.measurer.photo("a", x)])
    found = restorer.estimate(measured)
    corners_K = corners(restorer.grid.windows(measured.image_size))
    assert found.sigma_BK.shape == (1, len(corners_K)) == (1, 4)
    assert restorer.encoder is not None
    sigma_hw = estimate(restorer.encoder, restorer.prior, restorer.grid.pad(measured.seen_BCHW)).sigma_Bhw[0].double()
    height, width = restorer.grid.valid_size(measured.image_size)
    side = SIDE // restorer.grid.factor
    for k, (row, column) in enumerate(corners_K):
        seen = sigma_hw[row : min(row + side, height), column : min(column + side, width)]
        torch.testing.assert_close(found.sigma_BK[0, k], seen.square().mean().sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.sigma_hat_B[0], found.sigma_BK[0].square().mean().sqrt())


def test_windows_begin_where_their_own_damage_asks_for(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    measured = restorer.measure([restorer.measurer.photo("a", list(photos.values())[1])])
    found = restorer.estimate(measured)
    start_BK = torch.tensor([[3, 1, 0, 2]])
    (job,) = restorer.begin(measured, found.z_hat_BCHW, found.sigma_hat_B, start_BK)
    assert job.regions is not None
    assert job.start_step == 3
    (solved,) = restorer.solve([job])
    assert solved.error is None
    assert solved.nfe == 6 / 4


def test_the_papers_start_is_for_one_window(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    paper = dataclasses.replace(restorer.start, formula="paper")
    restorer.start = paper
    measured = restorer.measure([restorer.measurer.photo("a", list(photos.values())[1])])
    found = restorer.estimate(measured)
    with pytest.raises(ConfigError, match="paper"):
        restorer.begin(measured, found.z_hat_BCHW, found.sigma_hat_B, torch.tensor([[3, 1, 0, 2]]))


def test_true_sigma_leaves_the_padding_out(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    x = list(photos.values())[2][None]
    z = restorer.prior.encode(restorer.grid.pad(x))
    height, width = restorer.grid.valid_size((x.shape[2], x.shape[3]))
    wrong = z.clone()
    wrong[:, :, height:], wrong[:, :, :, width:] = 9, 9
    assert wrong.ne(z).any()
    assert restorer.true_sigma(wrong, x).item() < 1e-5
    assert restorer.decode(z, (x.shape[2], x.shape[3])).shape == x.shape


def test_a_size_that_the_operator_does_not_take_is_an_error_of_the_image(
    prior: LatentPrior, tiny_models: TinyModels, photos: dict[str, Tensor]
) -> None:
    recipe = Recipe(DegradationConfig("super_resolution"), solver=SolverConfig(steps=12))
    restorer = Restorer(recipe, prior, load_severity_encoder(tiny_models.encoder), measurement="simulated")
    restored = restorer(list(photos.values())[:2], keys=["whole", "odd"])
    assert restored.errors[0] is None
    assert restored.errors[1] is not None
    assert "51" in restored.errors[1]


def test_a_mask_of_another_size_is_an_error_of_the_image(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor
) -> None:
    recipe = Recipe(DegradationConfig("box_inpainting", {"side": [8, 16]}), solver=SolverConfig(steps=12))
    restorer = Restorer(recipe, prior, load_severity_encoder(tiny_models.encoder), measurement="simulated")
    restored = restorer(photo[:, :40, :40], mask=torch.ones(3, 39, 40))
    assert restored.errors[0] is not None
    assert "40 x 39" in restored.errors[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"measurement": "simulate"}, "measurement is 'simulate' .did you mean simulated.*observed"),
        ({"fit": "whol"}, "fit is 'whol' .did you mean whole"),
        ({"slots": 0}, "slots is 0"),
        ({"slots": 2.5}, "slots is 2.5"),
        ({"precision": "fp16"}, "precision is 'fp16'.*float32"),
        ({"device": "gpu"}, "device is 'gpu'; give cpu, cuda or auto"),
        ({"device": "meta"}, "device is 'meta'"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load("gaussian_blur_flash_proximal", **given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="finds no GPU here; give cpu or auto"):
        load("photo", device="cuda")


@pytest.mark.parametrize(
    "given", [{"noise_std": -1.0}, {"noise_std": [0.1, 0.2]}, {"noise_std": math.nan}, {"blur_std": torch.ones(2)}]
)
def test_no_numbers_are_refused(restorer: Restorer, photos: dict[str, Tensor], given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give (one|a finite) number"):
        restorer(photos["32x32"], **given)


def test_without_an_operator_no_photo_takes_the_full_chain(prior: LatentPrior, tiny_models: TinyModels) -> None:
    """A full chain that looks at no measurement would end at another photo."""
    encoder = load_severity_encoder(tiny_models.encoder)
    recipe = Recipe(DegradationConfig("photo"), Start(strength=1e6), SolverConfig("unguided", steps=12))
    step, fallback = Restorer(recipe, prior, encoder).start_steps(torch.tensor([0.1, 9.0, torch.inf]))
    assert (step < 12).all()
    assert not fallback.any()
    with pytest.raises(ConfigError, match="could end at a random image"):
        Recipe(DegradationConfig("photo"), Start("full"), SolverConfig("unguided", steps=12)).check()


def test_masks_that_cannot_be_meant_are_errors(tiny_models: TinyModels) -> None:
    restorer = load(
        Recipe(
            DegradationConfig("random_inpainting", noise_std=0.05),
            Start(mode="full"),
            SolverConfig("proximal", 2),
            prior=tiny_models.prior,
        )
    )
    photo = np.zeros((SIDE, SIDE, 3), np.uint8)
    known = np.ones((SIDE, SIDE), bool)
    known[:4] = False
    assert restorer(photo, mask=known).errors == [None], "booleans are the natural type of a mask"
    (error,) = restorer(photo, mask=known.astype(np.uint8)).errors
    assert "knows no pixel: it has to be white (255)" in str(error)
    (error,) = restorer(photo, mask=known[:-1]).errors
    assert f"the mask has {SIDE} x {SIDE - 1} pixels" in str(error)
