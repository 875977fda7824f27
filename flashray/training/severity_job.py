"""Training of a severity encoder, from a prior to a saved encoder with its figures."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flashray.degradations import make_degradation
from flashray.prior import load_prior
from flashray.severity.encoder import SeverityEncoder, load_severity_encoder
from flashray.training.card import note_training, write_severity_card
from flashray.training.launch import LaunchConfig, absolute, launch, resolve_device
from flashray.training.loop import LoopConfig, load_averaged
from flashray.training.photos import list_photos, load_fitted, sample_windows
from flashray.training.refit import RefitConfig, refit_head
from flashray.training.severity import SeverityConfig, SeverityTask


@dataclass(frozen=True)
class FamilyConfig:
    """A degradation family: its name, its settings, and the noise's std on the [0, 1] scale."""

    name: str = "gaussian_blur"
    settings: dict[str, Any] = field(default_factory=dict)
    noise_std: float = 0.05


@dataclass(frozen=True)
class TrainSeverityConfig:
    """What to train a severity encoder on, and how.

    Attributes:
        photos, val_photos: folders of training and of validation photos, clean; they are degraded on the fly.
        output: folder of the finished encoder.
        prior: the prior whose encoder it starts from: `bundled`, a folder or a hub id.
        init: a severity encoder whose weights training starts from instead.
    """

    photos: str
    val_photos: str
    output: str
    prior: str = "bundled"
    init: str = ""
    degradation: FamilyConfig = field(default_factory=FamilyConfig)
    severity: SeverityConfig = field(default_factory=SeverityConfig)
    refit: RefitConfig = field(default_factory=RefitConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


def train_severity(config: TrainSeverityConfig) -> dict[str, float]:
    """Train (or resume) and save the encoder; returns its figures on the validation photos."""
    places: dict[str, Any] = {
        name: absolute(getattr(config, name)) for name in ("photos", "val_photos", "prior", "init")
    }
    config = dataclasses.replace(config, **places)
    build = partial(build_severity_task, config)
    size = load_prior(config.prior).sample_size
    name = f"severity-{config.degradation.name}-{config.severity.crop or size}"
    state = launch(build, config.loop, config.photos, size, name, config.launch)
    task = build()
    load_averaged(task, state)
    task.to(resolve_device(config.launch.device)).eval()
    if config.refit.views:
        window = sample_windows(config.photos, size, config.refit.views, config.loop.seed)
        errors = refit_head(task, window, config.refit, config.loop.seed, bf16=config.loop.precision == "bf16")
        print(
            f"{name}: refitting the head on {len(window)} views: |σ̂ - σ̄| {errors['before']:.4f} → {errors['after']:.4f}"
        )
    encoder = SeverityEncoder.from_config(task.model.config).half()
    encoder.load_state_dict({key: value.half() for key, value in task.model.state_dict().items()})
    encoder.save_pretrained(config.output, safe_serialization=True)
    figures = task.validate()
    output = Path(config.output)
    trained = note_training(output, name, state, config.loop)
    write_severity_card(output, figures, len(task.val), trained)
    return figures


def build_severity_task(config: TrainSeverityConfig) -> SeverityTask:
    """The task: an encoder that starts as the prior's, and the frozen prior that judges it."""
    torch.manual_seed(config.loop.seed)
    family = config.degradation
    degradation = make_degradation(family.name, family.settings)
    prior = load_prior(config.prior)
    encoder = SeverityEncoder.from_prior(prior, family.name, family.settings, family.noise_std)
    if config.init:
        encoder.load_state_dict(load_severity_encoder(config.init).state_dict())
    val = load_fitted(list_photos(config.val_photos), prior.sample_size)
    return SeverityTask(encoder, prior, degradation, family.noise_std, config.severity, val)
