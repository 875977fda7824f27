"""Training of a prior: autoencoder, then denoiser, saved as a diffusers pipeline."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, UNet2DModel

from flashray.errors import ConfigError
from flashray.metrics import load_lpips
from flashray.prior import LatentPrior, load_prior
from flashray.training.autoencoder import AutoencoderConfig, AutoencoderTask, latent_scale, make_autoencoder
from flashray.training.card import note_training, write_prior_card
from flashray.training.denoiser import SCHEDULER_CONFIG, DenoiserConfig, DenoiserTask, make_denoiser
from flashray.training.launch import LaunchConfig, absolute, launch, resolve_device
from flashray.training.loop import LoopConfig, Task, load_averaged
from flashray.training.photos import list_photos, load_fitted

MODEL_INDEX = {
    "_class_name": "LDMPipeline",
    "vqvae": ["diffusers", "AutoencoderDC"],
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


@dataclass(frozen=True)
class TrainPriorConfig:
    """What to train a prior on, and how.

    Attributes:
        photos, val_photos: folders of training and of validation photos.
        output: folder of the finished prior, in diffusers' pipeline layout.
        size: side of the square images in pixels.
        stages: what to train; a stage that is left out is taken from `output`.
        init: a prior's folder whose weights training starts from, instead of random ones.
        card: what the photos are, in words, for the model card; empty writes none.
        lpips_weights: weights of LPIPS(AlexNet); see the README. Empty: FLASHRAY_LPIPS_WEIGHTS or torch.hub's cache.
    """

    photos: str
    val_photos: str
    output: str
    size: int = 128
    stages: tuple[str, ...] = ("autoencoder", "denoiser")
    init: str = ""
    lpips_weights: str = ""
    card: str = "photos"
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    autoencoder_loop: LoopConfig = field(default_factory=LoopConfig)
    denoiser_loop: LoopConfig = field(default_factory=LoopConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        unknown = set(self.stages) - {"autoencoder", "denoiser"}
        if unknown or not self.stages:
            raise ConfigError(f"stages is {list(self.stages)}; give autoencoder, denoiser or both")


def train_prior(config: TrainPriorConfig) -> None:
    """Train the stages in order; each can be resumed by running the same command again."""
    places: dict[str, Any] = {
        name: absolute(getattr(config, name)) for name in ("photos", "val_photos", "init", "lpips_weights")
    }
    config = dataclasses.replace(config, output=str(Path(config.output).absolute()), **places)
    output = Path(config.output)
    if "autoencoder" in config.stages:
        build: Callable[[], Task] = partial(build_autoencoder_task, config)
        state = launch(build, config.autoencoder_loop, config.photos, config.size, "autoencoder", config.launch)
        task = build()
        load_averaged(task, state)
        task.to(resolve_device(config.launch.device)).eval()
        autoencoder: Any = task.model
        scale = latent_scale(autoencoder, load_fitted(list_photos(config.photos)[:1024], config.size))
        autoencoder.register_to_config(scaling_factor=scale)
        save_half(autoencoder, output / "vqvae")
        note_training(output, "autoencoder", state, config.autoencoder_loop)
        (output / "scheduler").mkdir(parents=True, exist_ok=True)
        (output / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER_CONFIG, indent=2) + "\n")
        (output / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    if "denoiser" in config.stages:
        if not (output / "vqvae" / "config.json").is_file():
            raise ConfigError(f"stage denoiser: {output}/vqvae is missing; train the stage autoencoder first")
        if not (output / "unet" / "config.json").is_file():  # a fresh one, so that the folder opens as a prior
            save_half(_fresh_denoiser(config, output), output / "unet")
        build = partial(build_denoiser_task, config)
        state = launch(build, config.denoiser_loop, config.photos, config.size, "denoiser", config.launch)
        task = build()
        load_averaged(task, state)
        save_half(task.model, output / "unet")
        note_training(output, "denoiser", state, config.denoiser_loop)
        if config.card:
            write_card(config)


def write_card(config: TrainPriorConfig) -> None:
    """Measure the finished prior on all validation photos and write its card."""
    output = Path(config.output)
    val = load_fitted(list_photos(config.val_photos), config.size)
    trained = json.loads((output / "training.json").read_text())
    prior = load_prior(config.output, resolve_device(config.launch.device))
    write_prior_card(output, prior, config.card, val, trained)


def build_autoencoder_task(config: TrainPriorConfig) -> AutoencoderTask:
    """The first stage's task."""
    torch.manual_seed(config.autoencoder_loop.seed)
    if config.init:
        model = AutoencoderDC.from_pretrained(Path(config.init) / "vqvae", torch_dtype=torch.float32)
    else:
        model = make_autoencoder(config.autoencoder)
    lpips = load_lpips("alex", config.lpips_weights or None) if config.autoencoder.lpips else None
    val = load_fitted(list_photos(config.val_photos), config.size)
    return AutoencoderTask(model, config.autoencoder, lpips, val)


def build_denoiser_task(config: TrainPriorConfig) -> DenoiserTask:
    """The second stage's task: the output's autoencoder, and its denoiser, which is trained."""
    torch.manual_seed(config.denoiser_loop.seed)
    prior: LatentPrior = load_prior(config.output)
    prior.denoiser = UNet2DModel.from_pretrained(Path(config.init or config.output) / "unet", torch_dtype=torch.float32)
    prior.denoiser.requires_grad_(True)
    return DenoiserTask(prior, load_fitted(list_photos(config.val_photos), config.size), config.denoiser.draws)


def _fresh_denoiser(config: TrainPriorConfig, output: Path) -> UNet2DModel:
    torch.manual_seed(config.denoiser_loop.seed)
    autoencoder = json.loads((output / "vqvae" / "config.json").read_text())
    side = config.size // 2 ** (len(autoencoder["encoder_block_out_channels"]) - 1)
    return make_denoiser(config.denoiser, autoencoder["latent_channels"], side)


def save_half(model: AutoencoderDC | UNet2DModel, folder: Path) -> None:
    """Save a model's weights in half precision, the model itself left as it is."""
    weights = {name: value.detach().cpu().half() for name, value in model.state_dict().items()}
    twin = type(model).from_config(model.config).half()
    twin.load_state_dict(weights)
    twin.save_pretrained(folder, safe_serialization=True)
