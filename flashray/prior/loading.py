"""Priors from folders in diffusers' pipeline layout: what is there, whether it fits, and only then the weights."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.check import check_prior
from flashray.prior.condition import Family
from flashray.prior.dit import DiT
from flashray.prior.dry_run import dry_run
from flashray.prior.flow import SD3, Sana
from flashray.prior.folder import INDEX, STATISTICS, PipelineFolder, find_autoencoder, open_pipeline, read_index
from flashray.prior.geometry import latent_geometry
from flashray.prior.latent_prior import LatentPrior
from flashray.prior.ldm import LDM
from flashray.prior.levels import in_levels
from flashray.prior.pixel_space import SpaceToDepth
from flashray.prior.sdxl import SDXL
from flashray.prior.stable_diffusion import StableDiffusion
from flashray.prior.weights import check_sizes, hash_files, load_model, read_json, weight_files
from flashray.schedule import NoiseSchedule, finite_number, is_flow

FAMILIES: tuple[Family, ...] = (LDM(), StableDiffusion(), SDXL(), DiT(), SD3(), Sana())
AUTOENCODERS = ("AutoencoderDC", "AutoencoderKL", "VQModel")


def load_prior(source: str = "bundled", device: str | torch.device = "cpu", check: bool = False) -> LatentPrior:
    """Load a diffusion prior for inference (weights frozen).

    ConfigError if the folder is missing or is something else than a pipeline; if a component is missing, of an unknown
    class, or malformed; if the denoiser does not fit the latents; if weights are missing, unexpected, of another shape,
    NaN or infinite. Weights are read from safetensors files only.

    Args:
        source: `bundled`, a folder in diffusers' pipeline layout (an autoencoder under vqvae/, vae/ or autoencoder/, a
            denoiser under unet/, denoiser/ or transformer/, scheduler/), or the hub id or URI of such a pipeline.
            docs/priors.md lists the kinds. A pipeline whose model_index.json names no autoencoder (DDPMPipeline,
            DDIMPipeline) is a pixel prior: its latents are the pixels in [-1, 1] as they are, which is not quite unit
            variance.
        check: also run the networks on a test picture, and refuse a prior that does not behave as its configs say
            (`check_prior`). That costs an encoder, a decoder and a denoiser evaluation, so each of a run's workers does
            without; random weights do not pass it.
    """
    pipeline, family = open_family(source)
    files = _files(pipeline, family)
    schedule, prediction = _schedule(pipeline)
    side = _size(pipeline, "sample_size", 8192)
    autoencoder, scale, shift = load_autoencoder(pipeline.root)
    channels, factor = latent_geometry(autoencoder)
    taken, given = (_size(pipeline, key, 65536) for key in ("in_channels", "out_channels"))
    if taken != channels:
        raise ConfigError(f"prior {source}: the denoiser takes {taken} channels, and the latents have {channels}")
    if given not in (channels, 2 * channels):  # twice, where it also predicts variances
        raise ConfigError(f"prior {source}: the denoiser gives {given} channels, and the latents have {channels}")
    constants = {
        name: value.float() if value.is_floating_point() else value
        for name, value in family.condition(pipeline).items()
    }
    denoiser = family.wrap(load_model(_class(pipeline.denoiser_class), pipeline.denoiser), constants)
    dry_run(autoencoder, denoiser, schedule, channels, factor, side, source)
    prior = LatentPrior(
        autoencoder,
        denoiser,
        schedule,
        sample_size=side * factor,
        scale=scale,
        shift=shift,
        prediction_type=prediction,
        name=source,
        sha256=hash_files(pipeline.root, files),
    )
    prior = prior.to(device).eval().requires_grad_(False)
    if check:
        check_prior(prior)
    return prior


def open_family(source: str) -> tuple[PipelineFolder, Family]:
    """What a source is, before any weight is read.

    ConfigError if it is no pipeline, or of a kind that flashray does not open.
    """
    pipeline = open_pipeline(source)
    kind = pipeline.denoiser_class
    for family in FAMILIES:
        if kind in family.classes and family.fits(pipeline):
            check_sizes(pipeline.config, pipeline.denoiser / "config.json")
            family.refuse(pipeline)
            return pipeline, family
    raise _unknown_class(pipeline.denoiser, pipeline.config.get("_class_name"))


def load_autoencoder(folder: Path) -> tuple[Any, Tensor | float, Tensor | float]:
    """(autoencoder, scale, shift) of a pipeline; the pixels as they are where it says that it has none.

    ConfigError if it is missing, of an unknown class, malformed, or not for images of three channels.
    """
    path = find_autoencoder(folder, read_index(folder))
    if path is None:
        return SpaceToDepth(), 1.0, 0.0
    config = read_json(path / "config.json")
    kind = config.get("_class_name")
    if kind == SpaceToDepth.__name__:
        autoencoder: Any = _space_to_depth(config, path)
    elif kind in AUTOENCODERS:
        for key in ("in_channels", "out_channels"):
            if config.get(key, 3) != 3:
                raise ConfigError(f"prior {path}: {key} is {config[key]!r}; images have 3 channels")
        autoencoder = in_levels(load_model(_class(kind), path))
    else:
        raise _unknown_class(path, kind)
    return autoencoder, *_latent_scaling(folder, path, config, latent_geometry(autoencoder)[0])


def _space_to_depth(config: dict[str, Any], path: Path) -> SpaceToDepth:
    factor = config.get("factor", 1)
    if isinstance(factor, bool) or not isinstance(factor, int) or not 1 <= factor <= 64:
        raise ConfigError(f"prior {path}: factor is {factor!r}; give an integer in 1 … 64")
    pixels: SpaceToDepth = SpaceToDepth.from_config(config)
    return pixels


def hash_weights(folder: Path) -> str:
    """SHA-256 over the names and contents of the configs and weights that are loaded from a model's folder.

    The folder is a pipeline's, or a single model's, which has a config.json and weights beside it. ConfigError if no
    model can be loaded from it.
    """
    if (folder / "config.json").is_file() and not (folder / INDEX).is_file():
        return hash_files(folder, [folder / "config.json", *weight_files(folder)])
    return hash_files(folder, _files(*open_family(str(folder))))


def _files(pipeline: PipelineFolder, family: Family) -> list[Path]:
    """Every file that `load_prior` reads; ConfigError where one is missing."""
    root = pipeline.root
    files = [path for path in (root / INDEX, root / STATISTICS) if path.is_file()]
    files += [pipeline.scheduler, pipeline.denoiser / "config.json", *weight_files(pipeline.denoiser)]
    if pipeline.autoencoder is not None:
        config = pipeline.autoencoder / "config.json"
        pixels = read_json(config).get("_class_name") == SpaceToDepth.__name__
        files += [config, *([] if pixels else weight_files(pipeline.autoencoder))]
    return files + family.files(pipeline)


def _schedule(pipeline: PipelineFolder) -> tuple[NoiseSchedule, str]:
    """The whole schedule, and what the denoiser predicts."""
    config = read_json(pipeline.scheduler)
    if is_flow(config):
        return NoiseSchedule.from_scheduler_config(config), "flow_prediction"
    prediction = config.get("prediction_type", "epsilon")
    if prediction == "flow_prediction":
        raise ConfigError(f"prior {pipeline.source}: {pipeline.scheduler.name} predicts a flow without use_flow_sigmas")
    return NoiseSchedule.from_scheduler_config(config), str(prediction)


def _size(pipeline: PipelineFolder, key: str, largest: int) -> int:
    """A positive integer of the denoiser's config; diffusers' default where it says nothing."""
    value = pipeline.config.get(key, _default(pipeline.denoiser_class, key))
    if value is None and key == "out_channels":
        return _size(pipeline, "in_channels", largest)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ConfigError(
            f"prior {pipeline.source}: the denoiser's {key} is {value!r}; give an integer in 1 … {largest}"
        )
    return value


def _default(name: str, key: str) -> Any:
    return inspect.signature(_class(name).__init__).parameters[key].default


def _latent_scaling(
    folder: Path, path: Path, config: dict[str, Any], channels: int
) -> tuple[Tensor | float, Tensor | float]:
    statistics = folder / STATISTICS
    if statistics.is_file():
        mean, std = _mean_and_std(read_json(statistics), ("mean", "std"), channels, statistics)
        return 1 / std, mean
    # diffusers fills in 0.18215 for a VQModel whose config says nothing, but LDM's VQ models were trained unscaled
    default = 0.18215 if config["_class_name"] == "AutoencoderKL" else 1.0
    scale = finite_number(config, "scaling_factor", default, path)
    if not scale > 0:
        raise ConfigError(f"{path}: scaling_factor is {scale:g}; give a number above 0")
    names = ("latents_mean", "latents_std")
    if config["_class_name"] == "AutoencoderKL" and all(config.get(name) is not None for name in names):
        mean, std = _mean_and_std(config, names, channels, path)
        return scale / std, mean
    return scale, finite_number(config, "shift_factor", 0.0, path)


def _mean_and_std(values: dict[str, Any], names: tuple[str, str], channels: int, path: Path) -> tuple[Tensor, Tensor]:
    """Those of each channel, by these names; ConfigError where they are none."""
    mean, std = (_per_channel(values, name, channels, path) for name in names)
    if not (std > 0).all():
        raise ConfigError(f"{path}: {names[1]} must be above 0 in every channel")
    return mean, std


def _per_channel(values: dict[str, Any], name: str, channels: int, path: Path) -> Tensor:
    value = values.get(name)
    good = isinstance(value, list) and len(value) == channels
    if not good or not all(isinstance(one, int | float) and math.isfinite(one) for one in value or ()):
        raise ConfigError(f"{path}: {name} must be a list of {channels} finite numbers, one a channel")
    return torch.tensor(value, dtype=torch.float32)


def _class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _unknown_class(path: Path, kind: object) -> ConfigError:
    denoisers = [name for family in FAMILIES for name in family.classes]
    known = ", ".join(dict.fromkeys((*AUTOENCODERS, *denoisers)))
    return ConfigError(f"prior {path}: class {kind!r} cannot be used; flashray opens {known}")
