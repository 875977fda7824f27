"""SwinIR's training, in this process and as small as it goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.swinir import SwinIR, load_swinir
from benchmarks.swinir_task import LEVELS, SwinIRTask, restoration_scores
from benchmarks.train_swinir import TrainSwinIRConfig, train_swinir
from flashray.degradations import make_degradation
from flashray.degradations.simulate import degrade_at
from flashray.errors import ConfigError
from flashray.images import encode_png
from flashray.metrics import psnr
from flashray.option_parser import parse_as
from flashray.training import launch

BLUR = make_degradation("gaussian_blur")
NOISE = (0.05, 0.05)


def tiny(**settings: object) -> SwinIR:
    torch.manual_seed(0)
    return SwinIR(**({"channels": 16, "depths": (2,), "heads": 2, "window": 4} | settings))


def crops(photo: Tensor, count: int, side: int = 32) -> Tensor:
    return torch.stack([photo[:, 25 * n : 25 * n + side, 20 * n : 20 * n + side] for n in range(count)])


@pytest.fixture(scope="module")
def parse(tmp_path_factory: pytest.TempPathFactory, photo: Tensor) -> Callable[..., TrainSwinIRConfig]:
    """The job's configuration of these arguments: 12 training and 4 validation photos, the smallest of settings."""
    photos = tmp_path_factory.mktemp("photos")
    for n, crop in enumerate(crops(photo, 11, 40)):
        path = photos / ("val" if n % 4 == 0 else "train") / f"{n:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_png(crop))

    def from_arguments(output: Path, *more: str) -> TrainSwinIRConfig:
        folders = [f"--photos={photos}/train", f"--val-photos={photos}/val", f"--output={output / 'swinir'}"]
        sizes = ["--size=32", "--crop=16", "--swinir.channels=8", "--swinir.depths=[2]", "--swinir.window=4"]
        loop = [f"--loop.{setting}" for setting in ("epochs=2", "batch_size=4", "warmup_steps=1", "learning_rate=2e-3")]
        launch = ["--launch.launcher=local", f"--launch.storage={output / 'state'}", "--launch.device=cpu"]
        return parse_as(TrainSwinIRConfig, "benchmarks.train_swinir", [*folders, *sizes, *loop, *launch, *more])

    return from_arguments


@pytest.fixture(scope="module")
def trained(parse: Callable[..., TrainSwinIRConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train_swinir(parse(folder))
    return folder


def test_it_can_learn_one_batch_by_heart(photo: Tensor):
    x = crops(photo, 2, 16)
    y = degrade_at(x, torch.tensor([0.5, 1.0]), BLUR, torch.tensor([0.05, 0.05]), torch.tensor([1, 2]))
    model = tiny()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (model(y) - x).abs().mean().backward()
        optimizer.step()
    assert (psnr(model(y), x) - psnr(y, x)).mean() > 4


def test_the_loss_is_charbonniers(photo: Tensor, monkeypatch: pytest.MonkeyPatch):
    """Of a model that is still the identity: the mean over pixels of √((y - x)² + ε²)."""
    seen: list[Tensor] = []
    monkeypatch.setattr("benchmarks.swinir_task.degrade", lambda x, *_: (seen.append(x) or x + 0.3, {}))
    task = SwinIRTask(tiny(), BLUR, NOISE, crops(photo, 2), crop=16, charbonnier=0.4)
    terms = task(torch.zeros(3, 3, 40, 40, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert seen[0].shape == (3, 3, 16, 16)
    assert terms["loss"].item() == pytest.approx(0.5, rel=1e-6)
    assert terms["mse"].item() == pytest.approx(0.09, rel=1e-5)


def test_figures_are_those_of_the_measurements_for_the_identity(photo: Tensor):
    task = SwinIRTask(tiny().eval(), BLUR, NOISE, crops(photo, 18), crop=16)
    rows = task.figures()
    assert len(rows) == LEVELS
    assert all(row["psnr"] == row["y_psnr"] and row["ssim"] == row["y_ssim"] for row in rows)
    means = [row["psnr"][0] for row in rows]
    assert means == sorted(means, reverse=True)  # a harder blur leaves less
    low, high = rows[0]["psnr"][1:]
    assert low < means[0] < high
    # a photo's noise is its own: the same alone as among others
    scores = restoration_scores(task.model, BLUR, NOISE, task.val, torch.ones(18))
    torch.testing.assert_close(
        restoration_scores(task.model, BLUR, NOISE, task.val[:1], torch.ones(1))["psnr"], scores["psnr"][:1]
    )
    # validation: every photo at one level
    level = torch.arange(18) % LEVELS / (LEVELS - 1)
    expected = restoration_scores(task.model, BLUR, NOISE, task.val, level)["psnr"].mean().item()
    assert task.validate()["psnr"] == pytest.approx(expected)


def test_a_trained_model_opens_knows_its_family_and_has_a_card(trained: Path):
    model = load_swinir(str(trained / "swinir"))
    assert model.degradation == "gaussian_blur"
    assert model.config.noise_std == 0.05
    assert model.config.channels == 8
    y = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.isfinite(model(y)).all()
    assert not torch.equal(model(y), y)
    card = json.loads((trained / "swinir" / "card.json").read_text())
    assert [row["level"] for row in card["figures"]] == [0, 0.25, 0.5, 0.75, 1]
    assert set(card["trained"]) == {"swinir-gaussian_blur"}
    text = (trained / "swinir" / "README.md").read_text()
    assert text.startswith("# SwinIR: gaussian_blur")
    assert text.count("\n| ") == 1 + LEVELS


def test_each_epoch_is_logged_and_running_again_trains_nothing(trained: Path, parse: Callable[..., TrainSwinIRConfig]):
    weights = (trained / "swinir" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_swinir(parse(trained))
    assert (trained / "swinir" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    (log,) = (trained / "state").glob("swinir-gaussian_blur-*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"train/loss", "train/mse", "val/psnr", "val/ssim", "val/y_psnr"} <= set(rows[0])


def test_training_in_two_runs_equals_training_in_one(
    trained: Path, parse: Callable[..., TrainSwinIRConfig], tmp_path: Path
):
    real = launch.append_log

    def dying(path: Path, metrics: dict) -> None:
        real(path, metrics)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "append_log", dying)
        with pytest.raises(KeyboardInterrupt):
            train_swinir(parse(tmp_path))
    train_swinir(parse(tmp_path))
    name = "swinir/diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_training_can_start_from_another_model(trained: Path, parse: Callable[..., TrainSwinIRConfig], tmp_path: Path):
    init = f"--init={trained / 'swinir'}"
    train_swinir(parse(tmp_path, init, "--loop.epochs=1", "--loop.learning_rate=0"))
    y = torch.rand(1, 3, 32, 32) * 2 - 1
    ours, theirs = (load_swinir(str(folder / "swinir")) for folder in (tmp_path, trained))
    torch.testing.assert_close(ours(y), theirs(y))
    with pytest.raises(ConfigError, match="a SwinIR of other sizes"):
        train_swinir(parse(tmp_path, init, "--swinir.channels=16"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--swinir.heads=3", "give a multiple of swinir.heads, 3"),
        ("--swinir.window=5", "window is 5; give an even number"),
        ("--swinir.window=0", "window is 0; give an even number"),
    ],
)
def test_sizes_that_do_not_fit_are_config_errors(
    argument: str, message: str, parse: Callable[..., TrainSwinIRConfig], tmp_path: Path
):
    with pytest.raises(ConfigError, match=message):
        parse(tmp_path, argument)


def test_an_unknown_degradation_is_a_config_error(parse: Callable[..., TrainSwinIRConfig], tmp_path: Path):
    with pytest.raises(ConfigError, match="degradation 'fog' is not known"):
        train_swinir(parse(tmp_path, "--degradation.name=fog"))
