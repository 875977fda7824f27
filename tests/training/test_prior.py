"""Whole trainings in this process, as small as they go."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LDMPipeline
from torch import Tensor

from flashray.errors import ConfigError
from flashray.images import encode_png
from flashray.prior import load_prior
from flashray.severity import estimate, load_severity_encoder
from flashray.severity.loss import position_error
from flashray.tracking.model_registry import fetch
from flashray.training import launch
from flashray.training.autoencoder_task import AutoencoderConfig
from flashray.training.denoiser_task import VALIDATION_TIMESTEPS, DenoiserConfig
from flashray.training.loop import LoopConfig
from flashray.training.photo_windows import list_photos, load_fitted
from flashray.training.severity_task import SeverityConfig
from flashray.training.train_config import LaunchConfig
from flashray.training.train_prior import TrainPriorConfig, train_prior
from flashray.training.train_severity import TrainSeverityConfig, train_severity
from tests.conftest import TinyModels
from tests.support.models import severity_encoder

LOOP = LoopConfig(epochs=2, batch_size=8, learning_rate=2e-3, warmup_steps=2, ema_decay=0.5)
ONCE = dataclasses.replace(LOOP, epochs=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: Tensor) -> Callable[[str], str]:
    """Folders of 24 training and 6 validation photos of several sizes, cut from a real one."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(30):
        height, width = ((48, 48), (40, 70), (64, 44))[n % 3]
        top, left = 12 * n, (37 * n) % 400
        place = folder / ("val" if n % 5 == 0 else "train") / f"{n:02d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encode_png(photo[:, top : top + height, left : left + width]))
    return lambda name: str(folder / name)


def prior_config(
    photos: Callable[[str], str], folder: Path, loop: LoopConfig = LOOP, **more: object
) -> TrainPriorConfig:
    return TrainPriorConfig(
        photos=photos("train"),
        val_photos=photos("val"),
        output=str(folder / "prior"),
        size=32,
        card="",
        autoencoder=AutoencoderConfig(4, (8, 16, 16), (0, 1, 1), (0, 1, 1), crop=24, lpips=0.0),
        denoiser=DenoiserConfig((16, 32), (False, True), 1),
        autoencoder_loop=loop,
        denoiser_loop=loop,
        launch=LaunchConfig("local", str(folder / "state"), device="cpu"),
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def trained(photos: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of two epochs a stage."""
    folder = tmp_path_factory.mktemp("trained")
    train_prior(prior_config(photos, folder))
    return folder


def log_of(folder: Path, name: str) -> list[dict]:
    (log,) = (folder / "state").glob(f"{name}-*/log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_trained_prior_opens_and_its_latents_have_unit_size(trained: Path, photos: Callable[[str], str]):
    prior = load_prior(str(trained / "prior"))
    assert prior.sample_size == 32
    x = load_fitted(list_photos(photos("train")), 32)
    z = prior.encode(x)
    assert z.shape == (24, 4, 8, 8)
    assert z.square().mean().item() == pytest.approx(1, rel=0.01)  # half-precision weights
    assert torch.isfinite(prior.decode(z)).all()
    assert torch.isfinite(prior.epsilon(z, torch.arange(24) * 40)).all()
    for weights in (trained / "prior").rglob("*.safetensors"):
        assert weights.stat().st_size > 0
    assert not list((trained / "prior").rglob("*.bin"))


def test_each_stage_is_logged_and_improves(trained: Path):
    for stage in ("autoencoder", "denoiser"):
        rows = log_of(trained, stage)
        assert [row["epoch"] for row in rows] == [1, 2]
        assert rows[1]["step"] == 2 * rows[0]["step"] > 0
        assert rows[1]["train/loss"] < rows[0]["train/loss"]
    assert {"val/psnr", "val/ssim"} <= set(log_of(trained, "autoencoder")[0])
    assert {f"val/loss_t{t:03d}" for t in VALIDATION_TIMESTEPS} <= set(log_of(trained, "denoiser")[0])


def test_the_folder_is_a_diffusers_pipeline(trained: Path):
    pipeline = LDMPipeline.from_pretrained(trained / "prior")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


def test_running_again_trains_nothing_and_gives_the_same_bytes(
    trained: Path, photos: Callable[[str], str], tmp_path: Path
):
    before = {path: path.read_bytes() for path in (trained / "prior").rglob("*.safetensors")}
    assert len(before) == 2
    train_prior(prior_config(photos, trained))
    assert {path: path.read_bytes() for path in before} == before
    assert len(log_of(trained, "denoiser")) == 2


def test_training_in_two_runs_equals_training_in_one(trained: Path, photos: Callable[[str], str], tmp_path: Path):
    """Each stage is killed after its first epoch, once that epoch's state is written: the same bytes come out."""
    real = launch.append_log

    def dying(path: Path, metrics: dict) -> None:
        real(path, metrics)
        raise KeyboardInterrupt

    for stages in (("autoencoder",), ("denoiser",)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "append_log", dying)
            with pytest.raises(KeyboardInterrupt):
                train_prior(prior_config(photos, tmp_path, stages=stages))
        train_prior(prior_config(photos, tmp_path, stages=stages))
    for path in (trained / "prior").rglob("*.safetensors"):
        assert (tmp_path / "prior" / path.relative_to(trained / "prior")).read_bytes() == path.read_bytes()
    for stage in ("autoencoder", "denoiser"):
        assert [row["epoch"] for row in log_of(tmp_path, stage)] == [1, 2]


def test_training_can_start_from_another_prior(trained: Path, photos: Callable[[str], str], tmp_path: Path):
    nothing = LoopConfig(**(vars(LOOP) | {"epochs": 1, "learning_rate": 0.0}))
    train_prior(prior_config(photos, tmp_path, nothing, init=str(trained / "prior")))
    x = load_fitted(list_photos(photos("val")), 32)
    ours, theirs = load_prior(str(tmp_path / "prior")), load_prior(str(trained / "prior"))
    torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-3, atol=1e-3)
    t = torch.tensor([5] * len(x))
    z = theirs.encode(x)
    torch.testing.assert_close(ours.epsilon(z, t), theirs.epsilon(z, t), rtol=1e-3, atol=1e-3)


def test_a_denoiser_is_trained_on_flash_starts_of_a_given_prior(
    trained: Path, photos: Callable[[str], str], tiny_models: TinyModels, tmp_path: Path
):
    """The autoencoder comes from `init` where the output has none; an encoder of another prior is refused."""
    starts = DenoiserConfig(encoders=(tiny_models.encoder,), start_share=1.0, draws=1)
    config = dataclasses.replace(prior_config(photos, tmp_path, init=tiny_models.prior), stages=("denoiser",))
    train_prior(dataclasses.replace(config, denoiser=starts))
    ours, theirs = load_prior(config.output), load_prior(tiny_models.prior)
    x = load_fitted(list_photos(photos("val")), 32)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x))
    assert json.loads((tmp_path / "prior/unet/config.json").read_text())["_name_or_path"] == ""
    assert "train/start" in log_of(tmp_path, "denoiser")[-1]
    assert ours.schedule.alphas_cumprod.equal(theirs.schedule.alphas_cumprod)
    other = dataclasses.replace(config, init=str(trained / "prior"), output=str(tmp_path / "other"), denoiser=starts)
    with pytest.raises(ConfigError, match="was trained for another prior"):
        train_prior(other)
    with pytest.raises(ConfigError, match=r"give --stages '\[denoiser\]'"):
        dataclasses.replace(config, denoiser=starts, stages=("autoencoder", "denoiser"))


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_further_stage_leaves_what_the_denoiser_predicts(stage: str, photos: Callable[[str], str], tmp_path: Path):
    config = prior_config(photos, tmp_path, ONCE)
    of_v = dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, prediction="v_prediction"))
    train_prior(of_v)
    train_prior(dataclasses.replace(config, stages=(stage,)))
    assert load_prior(config.output).prediction_type == "v_prediction"


@pytest.mark.parametrize("measured", [True, False], ids=["statistics", "a scale alone"])
def test_a_decoder_trained_alone_keeps_the_latents_that_encoders_know(
    measured: bool, photos: Callable[[str], str], tiny_models: TinyModels, tmp_path: Path
):
    init = shutil.copytree(tiny_models.prior, tmp_path / "init")
    if measured:
        text = '{"mean": [0.1, -0.2, 0.3, 0.0], "std": [0.5, 1.0, 2.0, 4.0]}'
        (init / "latent_statistics.json").write_text(text)
    theirs = load_prior(str(init))
    severity_encoder(theirs).save_pretrained(tmp_path / "encoder")
    config = prior_config(photos, tmp_path, ONCE, init=str(init))
    decoder = AutoencoderConfig(crop=24, lpips=0.0, part="decoder")
    train_prior(dataclasses.replace(config, autoencoder=decoder))
    ours = load_prior(config.output)
    load_severity_encoder(str(tmp_path / "encoder")).check_prior(ours, "theirs")
    x = load_fitted(list_photos(photos("val")), 32)
    z = theirs.encode(x)
    torch.testing.assert_close(ours.encode(x), z, rtol=0, atol=0.02)  # half-precision weights
    assert not torch.allclose(ours.decode(z), theirs.decode(z), rtol=0, atol=0.02)


def test_cached_views_on_ray_are_refused_before_any_work(photos: Callable[[str], str], tmp_path: Path):
    config = prior_config(photos, tmp_path)
    cached = dataclasses.replace(config.denoiser, cache_views=2)
    with pytest.raises(ConfigError, match=r"denoiser\.cache_views is 2, .*; give --launch\.launcher local"):
        dataclasses.replace(config, denoiser=cached, launch=LaunchConfig("ray"))


@pytest.mark.parametrize("stages", [(), ("decoder",), ("autoencoder", "unet")])
def test_unknown_stages_are_config_errors(stages: tuple[str, ...], photos: Callable[[str], str], tmp_path: Path):
    with pytest.raises(ConfigError, match="give autoencoder, denoiser or both"):
        prior_config(photos, tmp_path, stages=stages)


def test_a_size_that_the_levels_do_not_divide_is_a_config_error(photos: Callable[[str], str], tmp_path: Path):
    config = prior_config(photos, tmp_path)
    with pytest.raises(ConfigError, match=r"size is 36; give a multiple of 8 .*, such as 32"):
        dataclasses.replace(config, size=36)
    dataclasses.replace(config, size=36, stages=("autoencoder",))
    with pytest.raises(ConfigError, match=r"size is 1; give a multiple of 4 .*, such as 4"):
        dataclasses.replace(config, size=1, stages=("autoencoder",))
    dataclasses.replace(config, size=36, init="a prior with levels of its own")


def test_a_flow_is_refused_before_any_work(photos: Callable[[str], str], tiny_models: TinyModels, tmp_path: Path):
    init = shutil.copytree(tiny_models.prior, tmp_path / "init")
    (init / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    with pytest.raises(ConfigError, match="predicts a flow, which is not trained here; give another init"):
        train_prior(prior_config(photos, tmp_path, init=str(init)))
    assert {path.name for path in tmp_path.iterdir()} == {"init"}


def test_a_denoiser_without_autoencoder_is_a_config_error(photos: Callable[[str], str], tmp_path: Path):
    with pytest.raises(ConfigError, match="train the stage autoencoder first"):
        train_prior(prior_config(photos, tmp_path, stages=("denoiser",)))


def test_a_trained_severity_encoder_opens_and_knows_its_family(
    trained: Path, photos: Callable[[str], str], tmp_path: Path
):
    config = TrainSeverityConfig(
        photos=photos("train"),
        val_photos=photos("val"),
        output=str(tmp_path / "encoder"),
        prior=str(trained / "prior"),
        severity=SeverityConfig(widths=(8, 12), blocks=(1, 1), crop=32),
        loop=LOOP,
        launch=LaunchConfig("local", str(tmp_path / "state"), device="cpu"),
    )
    figures = train_severity(config)
    assert set(figures) >= {"latent_mse", "sigma_error", "spearman_sigma", "ordering", "ordering_true"}
    encoder = load_severity_encoder(config.output)
    assert encoder.degradation == "gaussian_blur"
    assert encoder.config.noise_std == 0.05
    x = load_fitted(list_photos(photos("val")), 32)
    prior = load_prior(config.prior)
    severity, z0 = estimate(encoder, prior, x), prior.encode(x)
    encoder.check_prior(prior, "ours")
    assert encoder.config.parameter_ranges == {"blur_std": pytest.approx([0.3, 3.0], rel=0.5)}
    assert severity.parameters_BP2.shape == (len(x), 1, 2)
    # two epochs from the prior's own encoder stay near it
    assert (position_error(severity.z_hat_BCHW, z0).sqrt() < 1).all()
    registry = f"sqlite:///{tmp_path}/mlflow.db"
    registering = dataclasses.replace(config, register="blur", tracking_uri=registry)
    assert train_severity(registering) == figures  # finished: nothing is trained again
    registered = load_severity_encoder(str(fetch("models:/blur@champion", registry).folder))
    assert registered.sha256 == encoder.sha256
    nowhere = dataclasses.replace(registering, tracking_uri="http://127.0.0.1:1", photos="not looked at yet")
    with pytest.raises(ConfigError, match=r"the model registry at http://127.0.0.1:1 does not answer"):
        train_severity(nowhere)
    logs = list((tmp_path / "state").rglob("log.jsonl"))
    assert [len(log.read_text().splitlines()) for log in logs] == [2]


def test_a_folder_with_fewer_windows_than_a_batch_is_a_config_error(photos: Callable[[str], str], tmp_path: Path):
    with pytest.raises(ConfigError, match="batch_size is 1000"):
        train_prior(prior_config(photos, tmp_path, LoopConfig(epochs=1, batch_size=1000)))


def test_a_prior_of_smooth_latents_cached_and_cooled(photos: Callable[[str], str], tmp_path: Path):
    """Standardised latents, cached views, crops, v-prediction, a cool-down; more draws from the state before it."""
    loop = dataclasses.replace(LOOP, decay="cooldown", cooldown=0.5)
    small = AutoencoderConfig(
        4, (8, 16, 16), (0, 1, 1), (0, 1, 1), crop=24, lpips=0.0, smoothness=0.1, equivariance=0.2
    )
    denoiser = DenoiserConfig((16, 32), (False, False), 1, draws=2, prediction="v_prediction", crop=16, cache_views=2)
    config = dataclasses.replace(
        prior_config(photos, tmp_path, loop), autoencoder=small, denoiser=denoiser, card="some"
    )
    train_prior(config)
    prior = load_prior(config.output)
    assert prior.prediction_type == "v_prediction"
    z = prior.encode(load_fitted(list_photos(photos("train")), 32))
    assert z.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert z.var(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 4, rel=0.05)
    card = json.loads((tmp_path / "prior" / "card.json").read_text())
    assert set(card["latents"]) == {"roughness", "roughness_each", "wiener_share"}
    assert "Wiener" in (tmp_path / "prior" / "README.md").read_text()
    (constant,) = (tmp_path / "state").glob("denoiser-*/constant")
    assert len(list((tmp_path / "state").glob("latents-*.npy"))) == 1
    longer = dataclasses.replace(loop, go_on=str(constant), epochs=3)
    train_prior(dataclasses.replace(config, stages=("denoiser",), denoiser_loop=longer, card=""))
    assert len(list((tmp_path / "state").glob("denoiser-*"))) == 2
    assert len(list((tmp_path / "state").glob("latents-*.npy"))) == 1  # encoded once


def test_a_prior_is_trained_on_in_its_own_folder(trained: Path, photos: Callable[[str], str], tmp_path: Path):
    shutil.copytree(trained / "prior", tmp_path / "prior")
    before = (tmp_path / "prior" / "scheduler" / "scheduler_config.json").read_bytes()
    config = prior_config(photos, tmp_path, ONCE, init=str(tmp_path / "prior"))
    train_prior(dataclasses.replace(config, stages=("denoiser",)))
    assert (tmp_path / "prior" / "scheduler" / "scheduler_config.json").read_bytes() == before
