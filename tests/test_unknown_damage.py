"""Photos whose damage nobody knows: the recipe `photo` and the fusion of y with D(z) by learned weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import flashray
from flashray.errors import ImageError
from flashray.prior import load_prior
from flashray.recipe import DegradationConfig, FusionConfig, Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.schedule import NoiseSchedule
from flashray.severity import Severity, Start, load_severity_encoder
from tests.conftest import TinyModels
from tests.support.models import SIDE
from tests.support.windows import corners

SIZE = (SIDE + 13, SIDE + 6)


@pytest.fixture(scope="module")
def bundled() -> Restorer:
    return flashray.load("photo", device="cpu", precision="float32")


@pytest.fixture(scope="module")
def damaged(photo: Tensor) -> Tensor:
    """A crop of odd size, blurred by the mean of 7 × 7 pixels, with noise."""
    crop = photo[None, :, 49 : 49 + 81, 179 : 179 + 97]
    blurred = torch.nn.functional.avg_pool2d(crop, 7, stride=1)[0]
    noise = torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    return (blurred + 0.1 * noise).clamp(-1, 1)


@pytest.fixture
def tiny(tiny_models: TinyModels) -> Restorer:
    """Its fusion weights are not averaged, so that a test can say them of each position."""
    fusion = FusionConfig("learned", radius=0)
    recipe = Recipe(DegradationConfig("photo", noise_std=0.0), solver=SolverConfig("unguided", 20), fusion=fusion)
    prior = load_prior(tiny_models.prior)
    return Restorer(recipe.check(), prior, load_severity_encoder(tiny_models.encoder))


def says(restorer: Restorer, weight: Any, sigma: float = 0.5, residual: float | None = None) -> None:
    """Let the encoder say this fusion weight (of positions, or one), σ̂ and residual (or none) of every photo."""
    forward = restorer.encoder.forward  # type: ignore[union-attr]

    def changed(y_BCHW: Tensor, e_BCHW: Tensor) -> Severity:
        said = forward(y_BCHW, e_BCHW)
        weight_Bhw = torch.as_tensor(weight).expand_as(said.weight_Bhw).clone()
        log_variance = torch.full_like(said.log_variance_Bhw, 2 * torch.tensor(sigma).log().item())
        said = said._replace(weight_Bhw=weight_Bhw, log_variance_Bhw=log_variance)
        return said if residual is None else said._replace(residual_BCHW=torch.full_like(y_BCHW, residual))

    restorer.encoder.forward = changed  # type: ignore[union-attr, method-assign]


def test_a_photo_of_odd_size_is_restored_without_being_told_anything(bundled: Restorer, damaged: Tensor) -> None:
    restored = bundled(damaged, keys=["a"])
    assert restored.errors == [None]
    (image,) = restored.images
    assert image is not None
    assert image.shape == damaged.shape == (3, 75, 91)
    assert image.abs().max() <= 1
    assert not torch.equal(image, damaged)
    assert restored.sigma_hat[0] > 0


def test_what_unknown_damage_does_not_take_is_refused(tiny: Restorer, damaged: Tensor) -> None:
    with pytest.raises(ValueError, match="noise_std: photo is unknown damage"):
        tiny(damaged, noise_std=0.1)
    for given in ({"damage": 0.5}, {"damage": 0.5, "damage_seed": 3}):
        with pytest.raises(ValueError, match=f"{', '.join(given)}: photo is unknown damage"):
            tiny(damaged, **given)
        with pytest.raises(ImageError, match=f"its {', '.join(given)} is given, and photo is unknown damage"):
            tiny.photo("a", damaged, given)


def test_blur_is_damage_to_the_bundled_encoder(bundled: Restorer, damaged: Tensor, photo: Tensor) -> None:
    sharp = photo[:, 52 : 52 + 75, 182 : 182 + 91]
    measured = bundled.measure([bundled.measurer.photo(key, x) for key, x in {"y": damaged, "x": sharp}.items()])
    found = bundled.estimate(measured)
    weight_B = found.severity.weight_Bhw.mean(dim=(1, 2))  # type: ignore[union-attr]
    assert found.sigma_hat_B[0] > found.sigma_hat_B[1]
    assert weight_B[0] > 2 * weight_B[1]


def test_without_strength_the_denoiser_is_never_asked(
    bundled: Restorer, damaged: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(bundled.recipe, start=dataclasses.replace(bundled.recipe.start, strength=0.0))
    restorer = Restorer(recipe, bundled.prior, bundled.encoder)

    def refuse(*args: Any) -> Any:
        pytest.fail("the denoiser was asked")

    monkeypatch.setattr(restorer.prior, "predict", refuse)
    monkeypatch.setattr(restorer.prior, "epsilon", refuse)
    restored = restorer(damaged, keys=["a"])
    assert restored.nfe == [0.0]
    measured = restorer.measure([restorer.measurer.photo("a", damaged)])
    found = restorer.estimate(measured)
    jobs = restorer.begin(
        measured, found.z_hat_BCHW, found.sigma_hat_B, torch.zeros(1, dtype=torch.long), found.severity
    )
    assert found.z_hat_BCHW is not None
    decoded = restorer.decode(found.z_hat_BCHW, (75, 91))
    assert restored.images[0] is not None
    torch.testing.assert_close(restored.images[0], restorer.fuse(decoded, jobs)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, FusionConfig().threshold - 0.01])
def test_weights_below_the_threshold_give_the_photo_itself(tiny: Restorer, photo: Tensor, weight: float) -> None:
    says(tiny, weight)
    y = photo[:, : SIZE[0], : SIZE[1]]
    restored = tiny(y, keys=["a"])
    assert restored.nfe == [0.0]  # nothing of it would be seen
    assert restored.sigma_hat == [pytest.approx(0.5)]
    assert restored.images[0] is not None
    assert torch.equal(restored.images[0], y)


def test_a_photo_that_needs_nothing_is_not_decoded(
    tiny: Restorer, photo: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    decode = tiny.prior.decode
    monkeypatch.setattr(tiny.prior, "decode", lambda z_BCHW: sizes.append(len(z_BCHW)) or decode(z_BCHW))
    y = photo[:, : SIZE[0], : SIZE[1]]
    says(tiny, 0.0)
    tiny([y, y], keys=["a", "b"])
    assert sizes == []
    says(tiny, 1.0)
    tiny([y, y], keys=["a", "b"])
    assert sum(sizes) == 2


@pytest.mark.parametrize(("grey_levels", "share"), [(-2.5, 0), (4.5, 0.5), (20, 1)])
def test_the_residual_corrects_pixels_without_the_decoder(
    tiny: Restorer, photo: Tensor, monkeypatch: pytest.MonkeyPatch, grey_levels: float, share: float
) -> None:
    assert tiny.recipe.fusion.grain == 3
    monkeypatch.setattr(tiny.prior, "decode", lambda z_BCHW: pytest.fail("decoded"))
    residual = 2 * grey_levels / 255
    says(tiny, 0.0, residual=residual)
    y = photo[:, : SIZE[0], : SIZE[1]]
    restored = tiny([y, y], keys=["a", "b"])
    assert restored.nfe == [0.0, 0.0]
    for image in restored.images:
        assert image is not None
        torch.testing.assert_close(image, (y + share * residual).clamp(-1, 1), rtol=0, atol=1e-5)
    found = tiny.estimate(tiny.measure([tiny.measurer.photo("a", y)]))
    assert found.residual_B is not None
    assert found.residual_B.tolist() == [share > 0]


def test_the_residual_and_the_decoded_latent_are_weighed(tiny: Restorer, photo: Tensor) -> None:
    y = photo[:, : SIZE[0], : SIZE[1]]
    images = []
    for residual in (0.0, 0.1):
        says(tiny, 0.7, residual=residual)
        (image,) = tiny(y, keys=["a"]).images
        assert image is not None
        images.append(image)
    within = (images[1] < 1) & (images[0] > -1)
    torch.testing.assert_close((images[1] - images[0])[within], torch.full_like(y, 0.03)[within], rtol=0, atol=1e-5)


def test_windows_that_the_image_takes_nothing_from_are_spared(tiny: Restorer, photo: Tensor) -> None:
    size = (2 * SIDE, 3 * SIDE)
    weight_hw = torch.zeros(tiny.latent_shape(size)[1:])
    weight_hw[3, 5] = 0.9
    says(tiny, weight_hw)
    y = photo[:, : size[0], : size[1]]
    measured = tiny.measure([tiny.measurer.photo("a", y)])
    found = tiny.estimate(measured)
    windows = tiny.grid.windows(size)
    side = windows.rows.side
    # weights are interpolated, so that a window beside the position holds a part of it
    holds = [row - 1 <= 3 <= row + side and column - 1 <= 5 <= column + side for row, column in corners(windows)]
    assert 0 < sum(holds) < len(windows)
    assert found.start_sigma_BK[0].tolist() == [pytest.approx(0.5) if held else 0.0 for held in holds]
    step = tiny.start_steps(torch.tensor([0.5]))[0].item()
    restored = tiny(y, keys=["a"])
    assert restored.nfe == [pytest.approx(step * sum(holds) / len(windows))]
    assert restored.sigma_hat == [pytest.approx(0.5)]


def test_a_weight_of_one_gives_the_decoded_latent(tiny: Restorer, photo: Tensor) -> None:
    says(tiny, 1.0)
    y = photo[:, : SIZE[0], : SIZE[1]]
    alone = Restorer(dataclasses.replace(tiny.recipe, fusion=FusionConfig("none")), tiny.prior, tiny.encoder)
    (fused,), (decoded,) = tiny(y, keys=["a"]).images, alone(y, keys=["a"]).images
    assert fused is not None
    assert decoded is not None
    torch.testing.assert_close(fused, decoded, rtol=0, atol=1e-6)


def test_what_little_texture_is_taken_for_damage_is_left_alone(tiny: Restorer, photo: Tensor) -> None:
    weight_hw = torch.zeros(tiny.latent_shape(SIZE)[1:])
    weight_hw[3, 3] = 1.0
    says(tiny, weight_hw)
    y = photo[:, : SIZE[0], : SIZE[1]]
    averaging = dataclasses.replace(tiny.recipe, fusion=FusionConfig("learned", radius=3))
    careful = Restorer(averaging, tiny.prior, tiny.encoder)
    (changed,), (kept,) = tiny(y, keys=["a"]).images, careful(y, keys=["a"]).images
    assert changed is not None
    assert kept is not None
    assert not torch.equal(changed, y)
    assert torch.equal(kept, y)


def test_only_the_damaged_part_changes(tiny: Restorer, photo: Tensor) -> None:
    height, width = tiny.latent_shape(SIZE)[1:]
    weight_hw = torch.zeros(height, width)
    weight_hw[:, :4] = 0.9
    says(tiny, weight_hw)
    y = photo[:, : SIZE[0], : SIZE[1]]
    (image,) = tiny(y, keys=["a"]).images
    assert image is not None
    left = 5 * tiny.grid.factor  # weights are interpolated between positions
    assert torch.equal(image[:, :, left:], y[:, :, left:])
    assert not torch.equal(image[:, :, :left], y[:, :, :left])


def test_with_no_strength_only_a_severity_that_is_not_finite_takes_the_full_chain() -> None:
    schedule = NoiseSchedule.from_alphas_cumprod(torch.linspace(0.99, 0.01, 20, dtype=torch.float64))
    step, fallback = Start(strength=0.0).start_step(torch.tensor([0.0, 0.5, 9.0, torch.inf, torch.nan]), schedule)
    assert step.tolist() == [0, 0, 0, 20, 20]
    assert fallback.tolist() == [False, False, False, True, True]
