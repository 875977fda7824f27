"""Training of a severity encoder, from a prior to a saved encoder with its figures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from flashray.degradations import Degradation, make_degradation
from flashray.errors import ConfigError
from flashray.prior import load_prior
from flashray.prior.pixel_space import SpaceToDepth
from flashray.recipe import DegradationConfig
from flashray.severity.encoder import SeverityEncoder, load_severity_encoder
from flashray.sources import pinned
from flashray.tracking import default_uri
from flashray.tracking.model_registry import check_registry, register
from flashray.training.launch import train
from flashray.training.loop import LoopConfig, save_half
from flashray.training.model_card import note_training, write_severity_card
from flashray.training.photo_windows import list_photos, load_fitted, window_side
from flashray.training.severity_task import SeverityConfig, SeverityTask
from flashray.training.train_config import TrainConfig, with_absolute_paths


@dataclass(frozen=True)
class TrainSeverityConfig(TrainConfig):
    """What to train a severity encoder on, and how; the photos are degraded when they are used.

    Attributes:
        prior: the prior whose encoder it starts from: `bundled`, a folder, a hub id such as hf://owner/name@revision,
            or a URI such as s3://bucket/folder.
        init: a severity encoder whose weights training starts from instead; named in the same ways. One of another
            family gives its trunk and the heads that both have; one with fewer blocks gives those that it has.
        register: the name under which it is registered in MLflow after training.
        alias: points to the registered version from then on.
        tracking_uri: the MLflow server or database of the registry; default MLFLOW_TRACKING_URI, else mlflow.db beside
            the output.
    """

    prior: str = "bundled"
    init: str = ""
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    severity: SeverityConfig = field(default_factory=SeverityConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    # not in the repr, which names the checkpoints, because the training does not depend on these
    register: str | None = field(default=None, repr=False)
    alias: str = field(default="champion", repr=False)
    tracking_uri: str | None = field(default=None, repr=False)


def train_severity(config: TrainSeverityConfig) -> dict[str, float]:
    """Train (or resume) and save the encoder; returns its figures on the validation photos."""
    config = with_absolute_paths(config, "prior", "init")
    config = replace(config, prior=pinned(config.prior, "prior"), init=pinned(config.init, "severity encoder"))
    registry = config.tracking_uri or default_uri(config.output)
    if config.register:
        check_registry(config.register, config.alias, registry)
    size = load_prior(config.prior).sample_size
    name = f"severity-{config.degradation.name}-{config.severity.crop or size}"
    build = partial(build_severity_task, config)
    side = config.severity.window or window_side(size)
    task, state, figures = train(build, config.loop, config.photos, side, name, config.launch)
    output = Path(config.output)
    save_half(task.model, output)
    trained = note_training(output, name, state, config.loop)
    write_severity_card(output, figures, len(task.val), trained)
    if config.register:
        saved = load_severity_encoder(str(output))
        made = register(saved, output, config.register, config.alias, registry, figures)
        print(f"registered: {made}, models:/{config.register}@{config.alias}", flush=True)
    return figures


def build_severity_task(config: TrainSeverityConfig) -> SeverityTask:
    """The task: an encoder that starts as the prior's, and the frozen prior for the loss."""
    torch.manual_seed(config.loop.seed)
    family = config.degradation
    degradation = make_degradation(family.name, family.settings)
    prior = load_prior(config.prior)
    if isinstance(prior.autoencoder, SpaceToDepth):
        raise ConfigError(f"prior {config.prior} is one of pixels: it has no encoder to start from; name a latent one")
    ranges = parameter_ranges(degradation, family.noise_range)
    sizes = {"widths": list(config.severity.widths), "blocks": list(config.severity.blocks)}
    known = {"parameter_ranges": ranges, "residual": degradation.unknown, **sizes}
    encoder = SeverityEncoder.from_prior(prior, family.name, family.settings, family.noise_std, **known)
    if config.init:
        start_from(encoder, config.init, config.severity.part != "all")
    val = load_fitted(list_photos(config.val_photos), prior.sample_size)
    return SeverityTask(encoder, prior, degradation, family.noise_range, config.severity, val)


def start_from(encoder: SeverityEncoder, source: str, whole: bool = False) -> None:
    """Give an encoder the weights of another one, where both have them.

    Its trunk may have more blocks than the other one's: a new block begins as the identity. ConfigError if their trunks
    have other widths, the other one's has more blocks, or it lacks a head where `whole` asks for all.
    """
    other = load_severity_encoder(source)
    widths, blocks = list(other.config.widths), list(other.config.blocks)
    more = any(theirs > ours for theirs, ours in zip(blocks, encoder.config.blocks, strict=False))
    if widths != list(encoder.config.widths) or more:
        raise ConfigError(
            f"init {source}: its trunk has widths {widths} and blocks {blocks}; give severity.widths the same values, "
            "and severity.blocks the same or larger ones"
        )
    mine = encoder.state_dict()
    shared = {
        name: value for name, value in other.state_dict().items() if name in mine and value.shape == mine[name].shape
    }
    if whole and any(name.startswith("net.heads") and name not in shared for name in mine):
        raise ConfigError(
            f"init {source}: it lacks heads of this family, which parts fusion and residual do not train; train part "
            "all first"
        )
    encoder.load_state_dict(shared, strict=False)


def parameter_ranges(degradation: Degradation, noise: tuple[float, float]) -> dict[str, list[float]]:
    """[low, high] of the numbers that a family's encoder can predict: those that its severity decides, and the noise.

    The unknown mixture `photo` has none that another program could use.
    """
    if degradation.name == "photo":
        return {}
    ends = [degradation.parameters_at(torch.full((1,), severity)) for severity in (0.0, 1.0)]
    found = {name: sorted(end[name].item() for end in ends) for name in degradation.parameter_names if name in ends[0]}
    found["noise_std"] = list(noise)
    return {name: values for name, values in found.items() if values[0] < values[1]}
