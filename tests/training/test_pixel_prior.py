"""A pixel-space prior from its command line to a solved image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jsonargparse import auto_cli
from torch import Tensor

from flashray.active_image import Job
from flashray.degradations import make_degradation
from flashray.engine import solve
from flashray.errors import ConfigError
from flashray.images import encode_png
from flashray.prior import load_prior
from flashray.prior.pixel_space import SpaceToDepth
from flashray.solvers import make_solver
from flashray.training import model_card as card
from flashray.training.photo_windows import list_photos, load_fitted
from flashray.training.train_config import LaunchConfig
from flashray.training.train_prior import TrainPriorConfig, train_prior
from flashray.training.train_severity import TrainSeverityConfig, train_severity


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: Tensor) -> Path:
    """Folders of 12 training and 4 validation photos, cut from a real one."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(16):
        place = folder / ("val" if n % 4 == 0 else "train") / f"{n:02d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encode_png(photo[:, 20 * n : 20 * n + 40, 25 * n : 25 * n + 40]))
    return folder


@pytest.fixture(scope="module")
def parse(photos: Path) -> Callable[..., TrainPriorConfig]:
    """The job's configuration of these arguments, with the smallest of settings."""

    def from_arguments(output: Path, *more: str) -> TrainPriorConfig:
        places = [f"--photos={photos}/train", f"--val_photos={photos}/val", f"--output={output / 'prior'}"]
        sizes = ["--size=32", "--denoiser.channels=[16,32]", "--denoiser.attention=[false,true]", "--denoiser.layers=1"]
        loop = [f"--denoiser_loop.{setting}" for setting in ("epochs=2", "batch_size=4", "warmup_steps=1")]
        launch = ["--launch.launcher=local", f"--launch.storage={output / 'state'}", "--launch.device=cpu"]
        return auto_cli(
            TrainPriorConfig, args=[*places, "--autoencoder=none", *sizes, *loop, *launch, *more], as_positional=False
        )

    return from_arguments


@pytest.fixture(scope="module")
def trained(parse: Callable[..., TrainPriorConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pixel prior of two epochs, with a card whose samples take five steps."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "SAMPLE_STEPS", 5)
        train_prior(parse(folder, "--card=photos of an astronaut"))
    return folder / "prior"


def test_it_opens_and_its_pixels_have_unit_mean_square(trained: Path, photos: Path):
    prior = load_prior(str(trained))
    assert prior.sample_size == 32
    x = load_fitted(list_photos(photos / "train"), 32)
    z = prior.encode(x)
    assert z.shape == (12, 48, 8, 8)
    assert z.square().mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(prior.decode(z), x)


def test_only_the_denoiser_is_trained(trained: Path):
    assert set(json.loads((trained / "training.json").read_text())) == {"denoiser"}
    assert [path.parent.name for path in trained.rglob("*.safetensors")] == ["unet"]
    (log,) = (trained.parent / "state").glob("*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert log.parent.name.startswith("denoiser-")
    assert rows[1]["train/loss"] < rows[0]["train/loss"]


def test_its_card_speaks_of_pixels(trained: Path):
    text = (trained / "README.md").read_text()
    scale = load_prior(str(trained)).scale.item()
    assert text.startswith("# Pixel diffusion prior, 32×32")
    assert f"times {scale:.4g}" in text
    assert "4×4: 48×8×8" in text
    assert "PSNR" not in text
    assert (trained / "samples.png").is_file()
    assert "autoencoder" not in json.loads((trained / "card.json").read_text())


def test_the_engine_solves_with_it(trained: Path, photos: Path):
    prior, blur = load_prior(str(trained)), make_degradation("gaussian_blur")
    parameters = {name: value[0] for name, value in blur.parameters_at(torch.tensor([0.5])).items()}
    y = load_fitted(list_photos(photos / "val"), 32)[0]
    job = Job("a", 1, y, parameters, 0.05, torch.randn(48, 8, 8, generator=torch.Generator().manual_seed(0)), 10)
    (solved,) = solve(prior, blur, make_solver("latent_dps"), prior.schedule.respaced(10), [job])
    assert solved.image is not None
    assert solved.nfe == 10


def test_blocks_of_one_pixel_are_the_pixels(parse: Callable[..., TrainPriorConfig], tmp_path: Path):
    train_prior(parse(tmp_path, "--pixel_block=1", "--denoiser_loop.epochs=1", "--card="))
    prior = load_prior(str(tmp_path / "prior"))
    assert isinstance(prior.autoencoder, SpaceToDepth)
    assert prior.denoiser.config.in_channels == 3
    assert prior.sample_size == prior.denoiser.config.sample_size == 32


@pytest.mark.parametrize("block", ["0", "5"])
def test_blocks_that_do_not_tile_the_image_are_config_errors(
    block: str, parse: Callable[..., TrainPriorConfig], tmp_path: Path
):
    with pytest.raises(ConfigError, match=f"pixel_block is {block}; give a divisor of the size, 32"):
        parse(tmp_path, f"--pixel_block={block}")


def test_a_severity_encoder_of_pixels_is_a_config_error(trained: Path, photos: Path, tmp_path: Path):
    places = {"photos": str(photos / "train"), "val_photos": str(photos / "val"), "output": str(tmp_path / "out")}
    launch = LaunchConfig("local", str(tmp_path / "state"), device="cpu")
    with pytest.raises(ConfigError, match="is one of pixels"):
        train_severity(TrainSeverityConfig(**places, prior=str(trained), launch=launch))
