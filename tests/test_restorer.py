"""The restorer on photos of any size."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flashray.errors import ConfigError, ImageError
from flashray.images import encode_png
from flashray.loading import load
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import DegradationConfig, Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import Start, estimate, load_severity_encoder
from flashray.windows import pad_to
from tests.conftest import TinyModels
from tests.support.models import SIDE, severity_encoder
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


def test_two_photos_of_one_key_are_refused(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    batch = [restorer.photo("a", x) for x in photos.values()]
    with pytest.raises(ValueError, match="keys: two photos have the same"):
        restorer.restore_photos(batch)
    parts = [(one, restorer.estimate(one)) for one in (restorer.measure([photo]) for photo in batch)]
    with pytest.raises(ValueError, match="keys: two photos have the same"):
        restorer.restore_measured(parts, ["a", "b", "c"])


def test_a_path_given_twice_needs_keys(restorer: Restorer, photos: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(photos["32x32"]))
    with pytest.raises(ValueError, match=r"a\.png is given twice.* give keys"):
        restorer([path, str(path)])
    with pytest.raises(ValueError, match="keys: give 2 different names"):
        restorer([path, path], keys=["a", "a"])
    assert restorer([path, path], keys=["a", "b"]).errors == [None, None]


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


@pytest.mark.parametrize("size", [(64, 64), (100, 61), (40, 200)])
def test_the_blur_of_a_photo_smaller_than_a_window_is_predicted_from_the_photo_alone(
    photo: Tensor, size: tuple[int, int]
) -> None:
    """Padded to a window of 128 pixels these photos had an estimate of at most 1.8."""
    restorer = load("gaussian_blur_flash_proximal", device="cpu", precision="float32")
    operator = restorer.degradation.bind({"blur_std": torch.tensor([2.5])}, (512, 512))
    blurred = operator.A(photo[None])[0]
    noisy = blurred + 0.1 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    y = noisy[:, 100 : 100 + size[0], 150 : 150 + size[1]].clamp(-1, 1)
    assert restorer.predicted(y, ["blur_std"])["blur_std"] == pytest.approx(2.5, abs=0.5)


@pytest.mark.parametrize("size", [(1, 1), (3, SIDE + 5), (SIDE, SIDE), (SIDE + 19, SIDE + 10)])
def test_what_is_predicted_does_not_depend_on_padding_beyond_the_last_position(
    restorer: Restorer, photo: Tensor, size: tuple[int, int]
) -> None:
    factor, names = restorer.grid.factor, ["blur_std", "noise_std"]
    y = photo[:, : size[0], : size[1]]
    whole = pad_to(y[None], (-(-size[0] // factor) * factor, -(-size[1] // factor) * factor))[0]
    found = restorer.predicted(y, names)
    assert list(found) == names
    assert found == restorer.predicted(whole, names)


@pytest.mark.parametrize("fill", [True, False])
def test_the_predicted_noise_does_not_depend_on_what_lies_in_the_holes(
    prior: LatentPrior, photo: Tensor, fill: bool
) -> None:
    encoder = severity_encoder(prior, "random_inpainting", parameter_ranges={"noise_std": [0.0, 0.2]})
    family = DegradationConfig("random_inpainting", {"fill": fill}, noise_std=[0.0, 0.2])
    restorer = Restorer(Recipe(family, solver=SolverConfig(steps=12)), prior, encoder)
    y, known = photo[:, : SIDE + 5, :SIDE], torch.ones(1, SIDE + 5, SIDE)
    known[:, 6:20, 3:17] = 0
    stds = [restorer.photo("a", y.where(known > 0, hole), None, None, known).noise_std for hole in (-1.0, 0.3, 1.0)]
    assert len(set(stds)) == 1
    filled = restorer.measure([restorer.photo("a", y, None, stds[0], known)]).seen_BCHW[0]
    assert not fill or stds[0] == restorer.predicted(filled, ["noise_std"])["noise_std"]
    assert stds[0] != restorer.predicted(y, ["noise_std"])["noise_std"]


def test_the_noise_of_a_small_measurement_is_predicted_at_the_images_size(prior: LatentPrior, photo: Tensor) -> None:
    encoder = severity_encoder(prior, "super_resolution", parameter_ranges={"noise_std": [0.0, 0.2]})
    family = DegradationConfig("super_resolution", {"scale": 2}, noise_std=[0.0, 0.2])
    restorer = Restorer(Recipe(family, solver=SolverConfig(steps=12)), prior, encoder)
    one = restorer.photo("a", photo[:, :18, :21])
    seen = restorer.measure([one]).seen_BCHW[0]
    assert seen.shape == (3, 36, 42)
    assert one.noise_std == restorer.predicted(seen, ["noise_std"])["noise_std"]


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


def in_two_steps(prior: LatentPrior, name: str, settings: dict[str, Any], **options: Any) -> Restorer:
    """A full chain, without an encoder."""
    recipe = Recipe(DegradationConfig(name, settings), Start(mode="full"), SolverConfig("proximal", 2))
    return Restorer(recipe, prior, **options)


def test_a_photo_does_not_depend_on_whether_others_have_masks(prior: LatentPrior, photo: Tensor) -> None:
    restorer = in_two_steps(prior, "random_inpainting", {"missing": [0.5, 0.5], "paper": True})
    known = torch.ones(1, SIDE, SIDE)
    known[:, :8] = 0
    photos = [
        restorer.photo(f"{n}", photo[:, 40 * n : 40 * n + SIDE, 90 : 90 + SIDE], mask_1HW=known if n % 2 else None)
        for n in range(4)
    ]
    for order in (photos, photos[::-1]):
        together = restorer.restore_photos(order, [one.key for one in photos])
        for n, one in enumerate(photos):
            (alone,) = restorer.restore_photos([one]).images
            assert alone is not None
            assert together.images[n] is not None
            torch.testing.assert_close(together.images[n], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("super_resolution", {"scale": 3}, (SIDE + 16, SIDE + 1)),
        ("box_inpainting", {"side": [SIDE + 5, SIDE + 9]}, (SIDE + 10, SIDE + 12)),
    ],
)
def test_whole_photos_are_not_held_to_the_priors_size(
    prior: LatentPrior, photo: Tensor, name: str, settings: dict[str, Any], size: tuple[int, int]
) -> None:
    restored = in_two_steps(prior, name, settings, measurement="simulated")(photo[:, : size[0], : size[1]])
    assert restored.errors == [None]
    for fit in ("resize", "crop", "error"):
        with pytest.raises(ConfigError, match=f"degradation {name}: .* {SIDE} x {SIDE}"):
            in_two_steps(prior, name, settings, measurement="simulated", fit=fit)


def test_weights_that_are_none_are_refused_before_any_photo(prior: LatentPrior, tmp_path: Path) -> None:
    (tmp_path / "wizard.pth").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match="does not hold the published generator"):
        in_two_steps(prior, "kernel_wizard", {"weights": str(tmp_path / "wizard.pth")})


def test_a_small_measurement_is_observed_at_its_own_size(prior: LatentPrior, photo: Tensor) -> None:
    restored = in_two_steps(prior, "super_resolution", {"scale": 3})(photo[:, :14, :11])
    assert restored.errors == [None]
    assert restored.images[0] is not None
    assert restored.images[0].shape == (3, 42, 33)


def test_a_given_mask_replaces_settings_that_do_not_fit_the_photo(prior: LatentPrior, photo: Tensor) -> None:
    restorer, known = in_two_steps(prior, "box_inpainting", {}), np.ones((48, 48), bool)
    known[4:9] = False
    assert restorer(photo[:, :48, :48], mask=known).errors == [None]
    (error,) = restorer(photo[:, :48, :48], box_side=8, box_seed=0).errors
    assert "a box of side 64 is larger than an image of 48 x 48" in str(error)


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


def test_a_recipe_of_a_path_and_a_device_of_pytorch_are_taken(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(f"prior: {tiny_models.prior}\nstart: {{mode: full}}\nsolver: {{steps: 2}}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for recipe in (tmp_path / "mine.yaml", "~/mine.yaml", Path("~/mine.yaml")):
        restorer = load(recipe, device=torch.device("cpu"))
        assert (restorer.recipe.solver.steps, restorer.device) == (2, torch.device("cpu"))
    for wrong in (3, None, {"prior": "bundled"}):
        with pytest.raises(ConfigError, match="a recipe is a shipped one's name, the path of a YAML file"):
            load(wrong)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_photo_with_a_value_that_is_not_finite_is_refused(restorer: Restorer, photo: Tensor, value: float) -> None:
    damaged = photo[:, :SIDE, :SIDE].clone()
    damaged[0, 3, 5] = value
    with pytest.raises(ImageError, match="no finite floating-point numbers"):
        restorer.photo("a", damaged)


def test_a_photo_in_another_precision_is_taken(restorer: Restorer, photos: dict[str, Tensor]) -> None:
    x = photos["32x32"].half()
    found = [restorer.restore_photos([restorer.photo("a", x.to(dtype))]) for dtype in (torch.float64, torch.float16)]
    assert found[0].images[0] is not None
    assert found[1].images[0] is not None
    torch.testing.assert_close(found[0].images[0], found[1].images[0], rtol=0, atol=0)
    with pytest.raises(ImageError, match="no finite floating-point numbers"):
        restorer.photo("a", torch.zeros(3, SIDE, SIDE, dtype=torch.uint8))


def test_simulated_measurements_are_taken_as_observed_ones(
    prior: LatentPrior, tiny_models: TinyModels, photos: dict[str, Tensor]
) -> None:
    """Noise takes them out of [-1, 1]; other scales, clean images and photos of unknown damage are held to it."""
    recipe, encoder = Recipe(solver=SolverConfig(steps=12)), load_severity_encoder(tiny_models.encoder)
    simulated, observed = (Restorer(recipe, prior, encoder, kind) for kind in ("simulated", "observed"))
    x = 1 - 0.01 * photos["32x32"].abs()
    y = simulated.measure([simulated.photo("a", x, {"blur_std": 1.0}, 0.2)]).y_BCHW
    assert 1.1 < y.max() < 3
    expected = simulated(x, keys=["a"], blur_std=1.0, noise_std=0.2).images[0]
    found = observed(y, keys=["a"], blur_std=1.0, noise_std=0.2).images[0]
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    unknown = Recipe(DegradationConfig("photo"), solver=SolverConfig("unguided", steps=12))
    for one, tensor in ((simulated, y), (Restorer(unknown, prior, encoder), y), (observed, 127.5 * x)):
        with pytest.raises(ValueError, match=r"values are in \[-1, 1\], and these are from"):
            one(tensor)


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
    red = np.zeros((SIDE, SIDE, 3), np.uint8)
    red[..., 0] = 255
    (error,) = restorer(photo, mask=red).errors
    assert "its brightest value is 85" in str(error)
    (error,) = restorer(photo, mask=known[:-1]).errors
    assert f"the mask has {SIDE} x {SIDE - 1} pixels" in str(error)
