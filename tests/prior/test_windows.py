"""Photos larger than a prior's images: every family restores them by windows, with a flash start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashray.prior import LatentPrior, load_prior
from flashray.recipe import Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import SeverityEncoder, Start
from tests.support.prior_chains import trained_encoder
from tests.support.prior_layouts import LAYOUTS

STEPS = 6
SETTINGS = {"proximal": {"iterations": 2}, "latent_dps": {"dc_step": 0.1}}


def photo(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(4)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)[0]


def restorer_of(prior: LatentPrior, encoder: SeverityEncoder, start: Start, solver: str, slots: int) -> Restorer:
    recipe = Recipe(start=start, solver=SolverConfig(solver, steps=STEPS, settings=SETTINGS[solver]))
    return Restorer(recipe, prior, encoder, slots=slots)


def half_way(prior: LatentPrior, encoder: SeverityEncoder, x_CHW: Tensor) -> Start:
    """A flash start in the middle of the chain, whatever σ̂ random networks give."""
    restorer = restorer_of(prior, encoder, Start(), "proximal", 1)
    measured = restorer.measure([restorer.photo("a", x_CHW, {"blur_std": 1.0})])
    return Start(sigma_scale=0.7 / restorer.estimate(measured).sigma_hat_B.item())


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "DDPM, pixels"])
def test_windows_cover_a_photo_three_times_the_priors_size(name: str, tmp_path: Path):
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    encoder, side = trained_encoder(prior, 1)[0], prior.sample_size
    x = photo(3 * side, 2 * side + 3)
    start = half_way(prior, encoder, x)
    images = []
    for solver, slots in (("proximal", 5), ("proximal", 2), ("latent_dps", 5)):
        restorer = restorer_of(prior, encoder, start, solver, slots)
        assert len(restorer.grid.windows((x.shape[1], x.shape[2]))) == 4 * 3
        found = restorer(x, keys=["a"], blur_std=1.0)
        assert found.errors == [None]
        assert 0 < found.nfe[0] < STEPS
        image = found.images[0]
        assert image is not None
        assert image.shape == x.shape
        images.append(image)
    # batches of windows change no more than the last digits
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-3)
    assert not torch.allclose(images[0], images[2], rtol=0, atol=1e-3)


def test_windows_cover_a_photo_in_pixels_with_a_full_chain(tmp_path: Path):
    prior = load_prior(str(LAYOUTS["DDPM, pixels"](tmp_path)))
    x = photo(3 * prior.sample_size, 40)
    recipe = Recipe(start=Start("full"), solver=SolverConfig("proximal", steps=STEPS, settings=SETTINGS["proximal"]))
    found = Restorer(recipe, prior)(x, keys=["a"], blur_std=1.0)
    assert found.errors == [None]
    assert found.nfe == [STEPS]
    assert found.images[0] is not None
    assert found.images[0].shape == x.shape
