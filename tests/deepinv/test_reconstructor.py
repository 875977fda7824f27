"""flashray as deepinv's Reconstructor, with the bundled models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepinv
import pytest
import torch
from deepinv import physics as P
from deepinv.physics.functional import gaussian_blur
from torch import Tensor
from torch.utils.data import DataLoader

import flashray
from flashray.deepinv import FlashReconstructor, degradation, noise_std_of
from flashray.errors import ConfigError
from flashray.recipe import DegradationConfig, Recipe, SolverConfig
from flashray.severity import Start
from tests.support.physics import OfNoise, Squares, inpainting, mask, tiled_blur

SIDE = 128
BLUR, INPAINTING, PHOTO = "gaussian_blur_flash_proximal", "random_inpainting_flash_proximal", "bundled:photo"


@pytest.fixture(scope="module")
def models() -> dict[str, FlashReconstructor]:
    """Two shipped recipes, and one with the encoder of unknown damage.

    Their chain is short and starts at σ̂ itself, so that every photo takes a step of small noise: from half of σ̂ in the
    recipes' own chain some take none, and a later step is for LPIPS and not for the PSNR that is asserted.
    """
    chain = {"steps": 20, "spacing": "leading"}
    models = {"blur": (BLUR, {}), "inpainting": (INPAINTING, {}), "photo": (BLUR, {"severity_encoder": PHOTO})}
    return {
        name: FlashReconstructor(recipe, precision="float32", solver=chain, start={"sigma_scale": 1.0, **start})
        for name, (recipe, start) in models.items()
    }


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    """Two crops [2, 3, 128, 128] in [0, 1]."""
    return torch.stack([photo[:, top : top + SIDE, 160 : 160 + SIDE] for top in (20, 300)]) / 2 + 0.5


def psnr(image: Tensor, x: Tensor) -> float:
    return -10 * (image - x).square().mean().log10().item()


@pytest.mark.parametrize(
    ("model", "make"),
    [
        ("blur", lambda: P.Blur(gaussian_blur(sigma=(2, 2)), padding="circular", noise_model=P.GaussianNoise(0.05))),
        # by 4 the encoders of Gaussian blur and of unknown damage lower PSNR (docs/results/deepinv.md)
        ("blur", lambda: P.Downsampling(filter="bicubic", factor=2, noise_model=P.GaussianNoise(0.02))),
        ("inpainting", lambda: inpainting(0.5, side=SIDE)),
        ("blur", lambda: tiled_blur(SIDE)),
        ("photo", lambda: P.Denoising(P.PoissonGaussianNoise(gain=0.02, sigma=0.05))),
    ],
    ids=["Blur", "Downsampling", "Inpainting", "TiledSpaceVaryingBlur", "PoissonGaussian"],
)
def test_it_restores(model: str, make: Callable[[], Any], models: dict[str, FlashReconstructor], x: Tensor) -> None:
    torch.manual_seed(0)
    physics = make()
    if isinstance(physics.noise_model, P.ZeroNoise):
        physics.set_noise_model(P.GaussianNoise(0.05))
    y = physics(x)
    with torch.no_grad():
        restored = models[model](y, physics)
    assert restored.shape == x.shape
    assert 0 <= restored.min() <= restored.max() <= 1
    operator = DegradationConfig("deepinv", {"physics": physics, "size": [SIDE, SIDE]}).make().bind({}, (SIDE, SIDE))
    seen = operator.pseudo_image(2 * y - 1) / 2 + 0.5
    assert psnr(restored, x) > psnr(seen, x)
    assert all(0 < nfe < 10 for nfe in models[model].restored.nfe)


def test_images_of_one_batch_have_their_own_physics(models: dict[str, FlashReconstructor], x: Tensor) -> None:
    together = inpainting(side=SIDE)
    masks = torch.cat([mask(0.3, 1, SIDE), mask(0.7, 2, SIDE)])
    together.update(mask=masks)
    together.set_noise_model(P.GaussianNoise(torch.tensor([0.01, 0.1])))
    y = together(x)
    both = models["inpainting"](y, together)
    assert torch.equal(together.mask, masks)
    for n, sigma in enumerate((0.01, 0.1)):
        alone = P.Inpainting((3, SIDE, SIDE), mask=masks[n], noise_model=P.GaussianNoise(sigma))
        image = models["inpainting"](y[n : n + 1], alone)
        if n == 0:  # the same key, and so the same noise
            torch.testing.assert_close(image[0], both[0], rtol=0, atol=1e-3)
        assert psnr(image[0], both[n]) > 30


def test_other_precisions_are_restored_as_float32_is(models: dict[str, FlashReconstructor], x: Tensor) -> None:
    filters = torch.cat([gaussian_blur(sigma=(2, 2)), gaussian_blur(sigma=(2, 2)).roll(3)])  # of each image
    physics = P.Blur(filters, padding="circular", noise_model=P.GaussianNoise(0.05))
    torch.manual_seed(0)
    y = physics(x).half()
    expected = models["blur"](y.float(), physics)
    for dtype in (torch.float64, torch.float16):
        restored = models["blur"](y.to(dtype), physics.clone().to(dtype))
        assert restored.dtype == dtype
        assert psnr(restored.float(), expected) > 45


def test_a_nonlinear_physics_is_restored(x: Tensor) -> None:
    model = FlashReconstructor("nonlinear_blur_flash_proximal")
    physics = Squares()
    physics.set_noise_model(P.GaussianNoise(0.02))
    torch.manual_seed(0)
    y = physics(x)
    assert psnr(model(y, physics), x) > psnr(y, x) + 5


def test_deepinv_tests_it_as_its_benchmarks_do(models: dict[str, FlashReconstructor], x: Tensor) -> None:
    """The calls of deepinv_bench's runner and objectives: device set and used, measurements made on the way."""
    model: Any = models["blur"]
    model.to("cpu")
    model.device = "cpu"
    assert "FlashReconstructor" in str(model)
    physics = P.Downsampling(filter="bicubic", factor=2).to("cpu")
    found = deepinv.test(
        model,
        DataLoader(list(x)),
        physics,
        online_measurements=True,
        device="cpu",
        metrics=[deepinv.loss.PSNR()],
        compare_no_learning=False,
        verbose=False,
        show_progress_bar=False,
    )
    assert found["PSNR"] > 20
    assert found["PSNR_std"] >= 0


def test_the_noise_model_gives_the_standard_deviation() -> None:
    torch.manual_seed(0)
    level = torch.tensor([0.2, 0.8])[:, None, None, None]
    z = level.expand(2, 3, 200, 200)
    for noise in (
        P.ZeroNoise(),
        P.GaussianNoise(0.1),
        P.GaussianNoise(torch.tensor([0.1, 0.2])),
        P.PoissonNoise(gain=0.05),
        P.PoissonGaussianNoise(gain=0.02, sigma=0.05),
    ):
        y = noise(z)
        expected = (y - z).flatten(1).std(dim=1)
        torch.testing.assert_close(noise_std_of(P.Denoising(noise), y), expected, rtol=0.02, atol=1e-6)


def test_noise_that_is_not_known_is_named(models: dict[str, FlashReconstructor], x: Tensor) -> None:
    for noise in (P.UniformNoise(0.1), OfNoise()):
        with pytest.raises(ConfigError, match=f"standard deviation of {type(noise).__name__}; give noise_std"):
            models["blur"](x, P.Denoising(noise))
    with pytest.raises(ConfigError, match=r"PoissonNoise with normalize=False .*; give normalize=True"):
        models["blur"](x, P.Denoising(P.PoissonNoise(gain=0.05, normalize=False)))
    for noise in (P.PoissonGaussianNoise(), P.GaussianNoise(torch.tensor([0.1, 0.2]))):
        with pytest.raises(ConfigError, match=f"{type(noise).__name__} differs by image; give noise_std"):
            degradation(P.Denoising(noise))
    assert degradation(P.Denoising(P.UniformNoise(0.1)), noise_std=0.06).noise_std == 0.06


def test_an_image_without_parameters_keeps_the_physics_own_beside_one_with_some(x: Tensor) -> None:
    family = degradation(P.Blur(gaussian_blur(sigma=(2, 2)), padding="circular", noise_model=P.GaussianNoise(0.05)))
    recipe = Recipe(family, Start("full"), SolverConfig("proximal", 2))
    restorer, shifted = flashray.load(recipe, device="cpu", precision="float32"), gaussian_blur(sigma=(2, 2))[0].roll(3)
    photos = [
        restorer.photo(f"{n}", 2 * one - 1, given)
        for n, (one, given) in enumerate(zip(x, ({}, {"filter": shifted}), strict=True))
    ]
    for order in (photos, photos[::-1]):
        together = restorer.restore_photos(order, ["0", "1"])
        for n, one in enumerate(photos):
            (alone,) = restorer.restore_photos([one]).images
            torch.testing.assert_close(together.images[n], alone, rtol=0, atol=1e-4)


def test_measurements_that_are_no_images_are_refused_by_name(models: dict[str, FlashReconstructor], x: Tensor) -> None:
    physics = P.Pansharpen((3, SIDE, SIDE))
    with pytest.raises(ConfigError, match=r"Pansharpen measures TensorList; give one with real measurements \[B, C, h"):
        models["blur"](physics(x), physics)
    with pytest.raises(ConfigError, match=r"Denoising measures torch.float32 \[3, 128, 128\]; give"):
        models["blur"](x[0], P.Denoising(P.GaussianNoise(0.1)))


@pytest.mark.parametrize(
    "physics",
    [
        P.Inpainting((1, SIDE, SIDE), mask=mask(0.5, 0, SIDE)[0], noise_model=P.GaussianNoise(0.05)),
        P.Downsampling((1, SIDE, SIDE), filter="gaussian", factor=2, noise_model=P.GaussianNoise(0.05)),
    ],
    ids=lambda physics: type(physics).__name__,
)
def test_grey_measurements_are_refused_with_a_remedy(
    physics: Any, models: dict[str, FlashReconstructor], x: Tensor
) -> None:
    y = physics(x[:1, :1])
    with pytest.raises(ConfigError, match=r"images of 1 channels, and a prior's have three; .*give y\.expand\(-1, 3"):
        models["inpainting"](y, physics)
    if isinstance(physics, P.Inpainting):
        colour = P.Inpainting((3, SIDE, SIDE), mask=physics.mask[0], noise_model=physics.noise_model)
        restored = models["inpainting"](y.expand(-1, 3, -1, -1), colour).mean(dim=1, keepdim=True)
        assert psnr(restored, x[:1, :1]) > psnr(y, x[:1, :1]) + 5


def test_a_recipe_in_python_takes_a_physics(x: Tensor) -> None:
    physics = inpainting(side=2 * SIDE)
    physics.set_noise_model(P.GaussianNoise(0.05))
    family = degradation(physics)
    assert family.noise_std == pytest.approx(0.05)
    start, solver = Start(severity_encoder="bundled:random_inpainting"), SolverConfig("proximal", 20, 0.0)
    restorer = flashray.load(Recipe(family, start, solver), measurement="simulated", device="cpu", precision="float32")
    clean = 2 * x.repeat(1, 1, 2, 2) - 1
    found = []
    for known in (None, 2 * mask(0.2, 5, 2 * SIDE)[0].expand(3, -1, -1) - 1):
        restored = restorer(clean[:1], mask=known)
        assert restored.errors == [None]
        assert restored.images[0] is not None
        found.append(psnr(restored.images[0] / 2, clean[0] / 2))
    assert 22 < found[0] < found[1]
    assert "is for images of 256 x 256, not 128 x 128" in str(restorer(clean[:1, :, :SIDE, :SIDE]).errors[0])
    with pytest.raises(ValueError, match="masc: not a parameter of deepinv; known: mask"):
        restorer(clean[:1], masc=mask())
