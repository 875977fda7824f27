"""Training of a prior: autoencoder, then denoiser, saved as a diffusers pipeline."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderDC, UNet2DModel

from flashray.errors import ConfigError
from flashray.metrics import load_lpips
from flashray.prior import LatentPrior, latent_geometry, load_autoencoder, load_prior
from flashray.prior.folder import INDEX, SCHEDULER, STATISTICS, resolve
from flashray.prior.pixel_space import SpaceToDepth
from flashray.prior.weights import read_json
from flashray.schedule import is_flow
from flashray.severity import load_severity_encoder
from flashray.shards.place import Place
from flashray.sources import pinned
from flashray.training.autoencoder_task import AutoencoderConfig, AutoencoderTask, latent_scale, make_autoencoder
from flashray.training.denoiser_task import (
    SCHEDULER_CONFIG,
    DenoiserConfig,
    DenoiserTask,
    make_denoiser,
    use_plain_attention,
)
from flashray.training.latents import latent_statistics
from flashray.training.launch import device_here, train
from flashray.training.loop import LoopConfig, save_half
from flashray.training.model_card import note_training, write_prior_card
from flashray.training.photo_windows import list_photos, load_fitted, window_side
from flashray.training.photos import list_places
from flashray.training.start_task import StartTask
from flashray.training.train_config import TrainConfig, absolute, with_absolute_paths

MODEL_INDEX = {
    "_class_name": "LDMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


@dataclass(frozen=True)
class TrainPriorConfig(TrainConfig):
    """What to train a prior on, and how; `output` gets diffusers' pipeline layout.

    Attributes:
        size: side of the square images in pixels.
        stages: stages to train; a stage that is left out is taken from `output`.
        init: a prior whose weights training starts from, instead of random ones: `bundled`, a folder, a hub id or a
            URI. Where the output has no autoencoder, the stage denoiser takes the one from there.
        card: what the photos are, in words, for the model card; empty writes none.
        lpips_weights: weights of LPIPS, a file or a folder (docs/outputs.md, LPIPS). Empty: FLASHRAY_LPIPS_WEIGHTS
            or torch.hub's cache.
        autoencoder: its sizes and objective, or `none` for a prior in pixel space.
        pixel_block: in pixel space, the side of the blocks of pixels that are one position for the denoiser; 1 uses the
            pixels themselves, at pixel_block² times the cost.
    """

    size: int = 128
    stages: tuple[str, ...] = ("autoencoder", "denoiser")
    init: str = ""
    lpips_weights: str = ""
    card: str = "photos"
    autoencoder: AutoencoderConfig | Literal["none"] = field(default_factory=AutoencoderConfig)
    pixel_block: int = 4
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    autoencoder_loop: LoopConfig = field(default_factory=LoopConfig)
    denoiser_loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.stages) - {"autoencoder", "denoiser"}
        if unknown or not self.stages:
            raise ConfigError(f"stages is {list(self.stages)}; give autoencoder, denoiser or both")
        if self.denoiser.encoders and "autoencoder" in self.stages:
            raise ConfigError(
                "denoiser.encoders belong to the latents of a trained autoencoder; give --stages '[denoiser]'"
            )
        if self.autoencoder == "none" and (self.pixel_block < 1 or self.size % self.pixel_block):
            raise ConfigError(f"pixel_block is {self.pixel_block}; give a divisor of the size, {self.size}")
        if self.autoencoder != "none" and "autoencoder" in self.stages and not self.init:  # init has levels of its own
            halved = self.autoencoder.channels[1:] + self.denoiser.channels[1:] * ("denoiser" in self.stages)
            if self.size % (unit := 2 ** len(halved)):
                near = max(1, round(self.size / unit)) * unit
                raise ConfigError(f"size is {self.size}; give a multiple of {unit} for these channels, such as {near}")
        if self.denoiser.cache_views and "denoiser" in self.stages and self.launch.launcher == "ray":
            cached = f"denoiser.cache_views is {self.denoiser.cache_views}, and Ray caches no views"
            raise ConfigError(f"{cached}; give --launch.launcher local, or leave it out")


def train_prior(config: TrainPriorConfig) -> None:
    """Train the stages in order; each can be resumed by running the same command again."""
    config = with_absolute_paths(config, "init", "lpips_weights")
    encoders = tuple(pinned(absolute(source), "severity encoder") for source in config.denoiser.encoders)
    config = replace(config, init=pinned(config.init, "prior"), denoiser=replace(config.denoiser, encoders=encoders))
    scheduler = Path(resolve(config.init) if config.init else config.output, "scheduler", SCHEDULER)
    if "denoiser" in config.stages and scheduler.is_file() and is_flow(read_json(scheduler)):
        raise ConfigError(f"{scheduler}: its denoiser predicts a flow, which is not trained here; give another init")
    for source in encoders:  # before any work
        load_severity_encoder(source)
    if "autoencoder" in config.stages:
        train_autoencoder(config)
    if "denoiser" in config.stages:
        train_denoiser(config)
        if config.card:
            val = load_fitted(list_photos(config.val_photos), config.size)
            trained = json.loads((Path(config.output) / "training.json").read_text())
            prior = load_prior(config.output, device_here(config.launch))
            write_prior_card(Path(config.output), prior, config.card, val, trained)


def train_autoencoder(config: TrainPriorConfig) -> None:
    """The first stage: an autoencoder, its latents scaled to a mean square of 1. Pixels need the scale alone.

    A decoder alone keeps the scale and the statistics of `init`, whose denoiser and severity encoders thus still fit.
    """
    output, loop = Path(config.output), config.autoencoder_loop
    output.mkdir(parents=True, exist_ok=True)
    autoencoder: Any = SpaceToDepth(factor=config.pixel_block, scaling_factor=1.0)
    if config.autoencoder != "none":
        build = partial(build_autoencoder_task, config)
        task, state, _ = train(build, loop, config.photos, window_side(config.size), "autoencoder", config.launch)
        autoencoder = task.model
        note_training(output, "autoencoder", state, loop)
    if config.init and config.autoencoder != "none" and config.autoencoder.part == "decoder":
        take_statistics(resolve(config.init), output)
    else:
        measure_latents(autoencoder, config)
    save_half(autoencoder, output / "vqvae")
    library = "diffusers" if config.autoencoder != "none" else SpaceToDepth.__module__
    index = MODEL_INDEX | {"vqvae": [library, type(autoencoder).__name__]}
    if not (output / "scheduler" / SCHEDULER).is_file():
        write_scheduler(output, "epsilon")
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def measure_latents(autoencoder: Any, config: TrainPriorConfig) -> None:
    """Set the scaling factor by the training photos; of a trained autoencoder, write `latent_statistics.json` too."""
    device = device_here(config.launch)
    photos = load_fitted(spread(list_places(config.photos), 1024), config.size)
    autoencoder.register_to_config(scaling_factor=latent_scale(autoencoder, photos, device))
    if config.autoencoder != "none":
        mean_C, std_C = latent_statistics(autoencoder, photos, device)
        statistics = {"mean": mean_C.tolist(), "std": std_C.tolist()}
        (Path(config.output) / STATISTICS).write_text(json.dumps(statistics, indent=2) + "\n")


def train_denoiser(config: TrainPriorConfig) -> None:
    """The second stage: the denoiser of the latents of the output's autoencoder."""
    output, loop = Path(config.output), config.denoiser_loop
    if not (output / "vqvae" / "config.json").is_file():
        if not config.init:
            raise ConfigError(f"stage denoiser: {output}/vqvae is missing; train the stage autoencoder first")
        take_autoencoder(resolve(config.init), output)
    fresh = not (output / "unet" / "config.json").is_file()
    init = resolve(config.init).resolve() if config.init else output.resolve()
    if init != output.resolve():  # with the noise that its denoiser was trained on
        shutil.copytree(init / "scheduler", output / "scheduler", dirs_exist_ok=True)
    elif fresh:
        write_scheduler(output, config.denoiser.prediction)
    if fresh:  # so that the folder opens as a prior
        torch.manual_seed(loop.seed)
        autoencoder, _, _ = load_autoencoder(output)
        channels, factor = latent_geometry(autoencoder)
        save_half(make_denoiser(config.denoiser, channels, config.size // factor), output / "unet")
    build = partial(build_denoiser_task, config)
    task, state, _ = train(build, loop, config.photos, window_side(config.size), "denoiser", config.launch)
    save_half(task.model, output / "unet")
    note_training(output, "denoiser", state, loop)


def build_autoencoder_task(config: TrainPriorConfig) -> AutoencoderTask:
    """The first stage's task."""
    assert config.autoencoder != "none"
    torch.manual_seed(config.autoencoder_loop.seed)
    if config.init:
        model = AutoencoderDC.from_pretrained(resolve(config.init) / "vqvae", torch_dtype=torch.float32)
    else:
        model = make_autoencoder(config.autoencoder)
    net = config.autoencoder.lpips_net
    lpips = load_lpips(net, config.lpips_weights or None) if config.autoencoder.lpips else None
    val = load_fitted(list_photos(config.val_photos), config.size)
    return AutoencoderTask(model, config.autoencoder, lpips, val)


def build_denoiser_task(config: TrainPriorConfig) -> DenoiserTask:
    """The second stage's task: the output's autoencoder, and its denoiser, which is trained."""
    torch.manual_seed(config.denoiser_loop.seed)
    prior: LatentPrior = load_prior(config.output)
    unet = resolve(config.init or config.output) / "unet"
    prior.denoiser = UNet2DModel.from_pretrained(unet, torch_dtype=torch.float32)
    prior.denoiser.requires_grad_(True)
    if device_here(config.launch) == "cpu":
        use_plain_attention(prior.denoiser)
    chosen, val = config.denoiser, load_fitted(list_photos(config.val_photos), config.size)
    if not chosen.needs_photos:
        return DenoiserTask(prior, val, chosen)
    encoders = [load_severity_encoder(source) for source in chosen.encoders]
    for source, encoder in zip(chosen.encoders, encoders, strict=True):
        encoder.check_prior(prior, source)
    nets = chosen.lpips_nets if chosen.lpips else ()
    return StartTask(prior, val, chosen, encoders, [load_lpips(net, config.lpips_weights or None) for net in nets])


def write_scheduler(output: Path, prediction: str) -> None:
    """The pipeline's scheduler, as diffusers reads it, for a denoiser that predicts this."""
    (output / "scheduler").mkdir(parents=True, exist_ok=True)
    text = json.dumps(SCHEDULER_CONFIG | {"prediction_type": prediction}, indent=2)
    (output / "scheduler" / SCHEDULER).write_text(text + "\n")


def take_autoencoder(source: Path, output: Path) -> None:
    """Copy the autoencoder of another prior of this layout; ConfigError where there is none."""
    if not (source / "vqvae" / "config.json").is_file():
        raise ConfigError(f"init {source}: it has no folder vqvae to take the autoencoder from")
    output.mkdir(parents=True, exist_ok=True)
    if (source / INDEX).is_file():
        shutil.copyfile(source / INDEX, output / INDEX)
    take_statistics(source, output)
    with tempfile.TemporaryDirectory(dir=output, prefix=".vqvae-") as fresh:  # so that a killed copy leaves no half
        shutil.copytree(source / "vqvae", Path(fresh, "vqvae")).replace(output / "vqvae")


def take_statistics(source: Path, output: Path) -> None:
    """Give the output the latents' statistics of another prior, or none where that has none; both may be one folder."""
    if not (source / STATISTICS).is_file():
        (output / STATISTICS).unlink(missing_ok=True)
    elif not source.samefile(output):
        shutil.copyfile(source / STATISTICS, output / STATISTICS)


def spread(paths: list[Place], most: int) -> list[Place]:
    """At most so many of these places, evenly spaced: photos are sorted by their source."""
    return paths[:: max(1, len(paths) // most)][:most]
