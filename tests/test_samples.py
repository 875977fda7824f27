"""Several restorations of one photo: the first is what one alone would be, and the others differ by their noise."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flashray.images import decode_spread, encode_spread, sample_spread
from flashray.prior import load_prior
from flashray.recipe import DegradationConfig, FusionConfig, Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.seeding import image_seed, sample_seed
from flashray.severity import load_severity_encoder
from flashray.severity.start import Start
from tests.conftest import TinyModels
from tests.support.models import SIDE


def restorer_of(models: TinyModels, **values: object) -> Restorer:
    recipe = Recipe(DegradationConfig("gaussian_blur"), solver=SolverConfig("proximal", 12), **values)  # type: ignore[arg-type]
    return Restorer(recipe, load_prior(models.prior), load_severity_encoder(models.encoder), "simulated", slots=3)


@pytest.fixture(scope="module")
def crops(photo: Tensor) -> list[Tensor]:
    return [photo[:, 60 : 60 + h, 90 : 90 + w] for h, w in ((SIDE, SIDE), (SIDE + 19, SIDE + 10), (SIDE, SIDE))]


def test_every_sample_has_noise_of_its_own() -> None:
    seed = image_seed(3, "a.png")
    seeds = [sample_seed(seed, n) for n in range(5)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 5


def test_the_first_sample_does_not_depend_on_their_number(tiny_models: TinyModels, crops: list[Tensor]) -> None:
    restorer = restorer_of(tiny_models, fusion=FusionConfig("operator"))
    alone, three, four = (restorer(crops, samples=n) for n in (1, 3, 4))
    assert three.nfe == alone.nfe
    assert alone.spread == [None] * len(crops)
    for n in range(len(crops)):
        one, some, more = alone.samples[n], three.samples[n], four.samples[n]
        assert one is not None
        assert some is not None
        assert more is not None
        assert (len(one), len(some), len(more)) == (1, 3, 4)
        assert torch.equal(three.images[n], alone.images[n])  # type: ignore[arg-type]
        assert torch.equal(some[0], one[0])
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(some, more, strict=False))
        if alone.nfe[n] >= 1:
            assert len({image.numpy().tobytes() for image in more}) == 4
        torch.testing.assert_close(more[0], four.images[n])
        spread = four.spread[n]
        assert spread is not None
        expected = torch.stack([*more]).double().std(dim=0).square().mean(dim=0).sqrt() * 127.5
        torch.testing.assert_close(spread, expected.float(), rtol=1e-4, atol=1e-3)


def test_where_no_step_is_taken_samples_are_the_same(tiny_models: TinyModels, crops: list[Tensor]) -> None:
    start = Start(severity_encoder=tiny_models.encoder, strength=0.0)
    found = restorer_of(tiny_models, start=start)(crops[1], samples=3)
    assert found.nfe == [0]
    assert found.spread[0] is not None
    assert found.spread[0].max() == 0


def test_an_image_with_an_error_has_no_samples(tiny_models: TinyModels, crops: list[Tensor]) -> None:
    found = restorer_of(tiny_models)(["gone.png", crops[0]], samples=2)  # type: ignore[list-item]
    assert found.errors[0] is not None
    assert (found.images[0], found.samples[0], found.spread[0]) == (None, None, None)
    assert found.samples[1] is not None
    with pytest.raises(ValueError, match="samples is 0"):
        restorer_of(tiny_models)(crops[0], samples=0)


def test_the_map_of_the_spread_says_its_scale() -> None:
    levels = torch.tensor([[0.0, 0.5, 1.0], [10.0, 31.875, 99.0]])
    data = encode_spread(levels)
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 4, 8], [80, 255, 255]]
    assert "8 is one grey level" in picture.text["Description"]  # type: ignore[attr-defined]
    torch.testing.assert_close(decode_spread(data), levels.clamp(max=31.875), rtol=0, atol=0.01)
    pair = [torch.full((3, 300, 2), -0.1), torch.full((3, 300, 2), 0.1)]
    torch.testing.assert_close(sample_spread(pair), torch.full((300, 2), 127.5 * 0.2 / 2**0.5))
