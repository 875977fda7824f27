"""Diffusion priors: autoencoder, denoiser and noise schedule, loaded from a diffusers pipeline directory.

A pixel-space prior is one whose autoencoder is a `SpaceToDepth`.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior.pixel_space import SpaceToDepth
from flashray.schedule import NoiseSchedule

# diffusers' component names, in the order in which they are looked for
_AUTOENCODER_NAMES = ("vqvae", "vae", "autoencoder")
_DENOISER_NAMES = ("unet", "denoiser", ".")  # the first DDPM pipelines are their UNet's own folder
_WEIGHTS = "diffusion_pytorch_model.safetensors"


class LatentPrior(nn.Module):
    """A prior p(x) as x = D(z), z from a diffusion model. Latents have unit variance outside the autoencoder.

    Args:
        autoencoder: a diffusers AutoencoderDC, AutoencoderKL or VQModel, a SpaceToDepth for a prior in pixel space, or
            anything with their `encode` and `decode`.
        denoiser: a diffusers UNet2DModel, or a callable (z, timestep_B) with a `.sample`.
        schedule: the denoiser's whole noise schedule.
        sample_size: side in pixels of the square images that the prior was trained on.
        scale: the factor that brings the autoencoder's latents to unit variance.
        shift: subtracted before scaling; a number, or one a channel.
        prediction_type: what the denoiser predicts: `epsilon`, `v_prediction` or `sample`.
    """

    autoencoder: Any  # diffusers' models, whose attributes a type checker cannot see
    denoiser: Any
    scale: Tensor
    shift: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        autoencoder: nn.Module,
        denoiser: nn.Module,
        schedule: NoiseSchedule,
        sample_size: int,
        scale: Tensor | float = 1.0,
        shift: Tensor | float = 0.0,
        prediction_type: str = "epsilon",
        name: str = "",
        sha256: str = "",
    ) -> None:
        super().__init__()
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(f"prior {name}: prediction_type {prediction_type!r} is not known")
        self.autoencoder, self.denoiser = autoencoder, denoiser
        self.schedule = schedule
        self.sample_size = sample_size
        self.prediction_type = prediction_type
        self.name, self.sha256 = name, sha256
        self.bf16 = False
        for buffer, value in {"scale": scale, "shift": shift}.items():
            per_channel = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(buffer, per_channel, persistent=False)
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod.float(), persistent=False)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """E(x): latents [B, C, h, w] of images in [-1, 1]; before quantisation (VQ), the posterior's mode (KL)."""
        with self.autocast():
            encoded = self.autoencoder.encode(x_BCHW)
        latent = getattr(encoded, "latents", None)
        if latent is None:
            latent = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        return (latent.to(x_BCHW.dtype) - self.shift) * self.scale

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """D(z): images, nominally in [-1, 1] and not clipped; through the quantiser where there is one."""
        with self.autocast():
            image = self.autoencoder.decode(z_BCHW / self.scale + self.shift).sample
        return image.to(z_BCHW.dtype)

    def epsilon(self, z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """ε(z, t), whatever the denoiser itself predicts; t is [B] long in 0 … 999."""
        with self.autocast():
            output = self.denoiser(z_BCHW, timestep_B).sample[:, : z_BCHW.shape[1]].to(z_BCHW.dtype)
        if self.prediction_type == "epsilon":
            return output
        alpha = self.alphas_cumprod[timestep_B][:, None, None, None].to(output.dtype)
        if self.prediction_type == "v_prediction":  # Salimans & Ho 2022, appendix D
            return alpha.sqrt() * output + (1 - alpha).sqrt() * z_BCHW
        return (z_BCHW - alpha.sqrt() * output) / (1 - alpha).sqrt()

    def autocast(self) -> AbstractContextManager[Any]:
        """The networks run in bfloat16 where `bf16` is set; what they give and take stays in the caller's precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def device(self) -> torch.device:
        return self.scale.device


def bundled(*parts: str) -> Path:
    """The path of something that comes inside the package."""
    return Path(__file__).resolve().parents[1].joinpath("assets", *parts)


def hash_weights(folder: Path) -> str:
    """SHA-256 over the names and contents of a model folder's configs and weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if (
            path.is_file()
            and path.suffix in (".json", ".safetensors")
            and path.name not in ("card.json", "training.json")
        ):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def load_prior(
    source: str = "bundled", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> LatentPrior:
    """Load a diffusion prior for inference (weights frozen).

    Args:
        source: `bundled`, a folder in diffusers' pipeline layout (an autoencoder under vqvae/, vae/ or autoencoder/, a
            UNet2DModel under unet/ or denoiser/, scheduler/), or the hub id of such a pipeline. A pipeline whose
            model_index.json names no autoencoder (DDPMPipeline, DDIMPipeline) is a pixel prior: its latents are the
            pixels in [-1, 1] as they are, which is not quite unit variance.

    Raises:
        ConfigError: if the folder is missing, a component is missing or of an unknown class, or the denoiser does not
            fit the latents. Weights are read from safetensors files only.
    """
    folder = _resolve(source)
    autoencoder, scale, shift = load_autoencoder(folder, dtype)
    denoiser, _ = _load_component(folder, _DENOISER_NAMES, dtype)
    channels, factor = latent_geometry(autoencoder)
    taken = denoiser.config.in_channels
    if taken != channels:
        raise ConfigError(f"prior {source}: the denoiser takes {taken} channels, and the latents have {channels}")
    scheduler = _scheduler_config(folder)
    prior = LatentPrior(
        autoencoder,
        denoiser,
        NoiseSchedule.from_scheduler_config(scheduler),
        sample_size=int(denoiser.config.sample_size) * factor,
        scale=scale,
        shift=shift,
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        name=source,
        sha256=hash_weights(folder),
    )
    return prior.to(device).eval().requires_grad_(False)


def _resolve(source: str) -> Path:
    if source == "bundled":
        return bundled("prior")
    folder = Path(source)
    if folder.is_dir():
        return folder
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ConfigError(f"prior {source}: no such folder; give `bundled`, a diffusers pipeline folder or a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds
        raise ConfigError(f"prior {source}: no such folder, and the hub did not give it: {error}") from error


def load_autoencoder(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor | float, Tensor | float]:
    """(autoencoder, scale, shift) of a pipeline; the pixels as they are where it says that it has none."""
    index = folder / "model_index.json"
    if index.is_file() and not set(_AUTOENCODER_NAMES) & set(json.loads(index.read_text())):
        return SpaceToDepth(), 1.0, 0.0
    autoencoder, config = _load_component(folder, _AUTOENCODER_NAMES, dtype)
    return autoencoder, *_latent_scaling(folder, config)


def _load_component(folder: Path, names: tuple[str, ...], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    import diffusers

    found = [name for name in names if (folder / name / "config.json").is_file()]
    if not found:
        raise ConfigError(f"prior {folder}: none of {', '.join(f'{name}/config.json' for name in names)} is there")
    path = folder / found[0]
    config = json.loads((path / "config.json").read_text())
    kind = config.get("_class_name")
    if kind == SpaceToDepth.__name__:
        return SpaceToDepth.from_config(config), config
    if kind not in ("AutoencoderDC", "AutoencoderKL", "VQModel", "UNet2DModel"):
        raise ConfigError(
            f"prior {path}: class {kind!r} cannot be used; "
            "flashray opens AutoencoderDC, AutoencoderKL, VQModel and UNet2DModel"
        )
    if not (path / _WEIGHTS).is_file() and not (path / f"{_WEIGHTS}.index.json").is_file():
        raise ConfigError(f"prior {path}: {_WEIGHTS} is missing; save the pipeline with safe_serialization=True")
    cls = getattr(diffusers, kind)
    return cls.from_pretrained(path, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False), config


def _scheduler_config(folder: Path) -> dict[str, Any]:
    name = "scheduler_config.json"
    found = [path for path in (folder / "scheduler" / name, folder / name) if path.is_file()]
    if not found:
        raise ConfigError(f"prior {folder}: scheduler/{name} is missing; a pipeline saved by diffusers has it")
    config: dict[str, Any] = json.loads(found[0].read_text())
    return config


def _latent_scaling(folder: Path, config: dict[str, Any]) -> tuple[Tensor | float, Tensor | float]:
    statistics = folder / "latent_statistics.json"
    if statistics.is_file():  # one mean and standard deviation a channel
        values = json.loads(statistics.read_text())
        return 1 / torch.tensor(values["std"]), torch.tensor(values["mean"])
    # diffusers fills in 0.18215 for a VQModel whose config says nothing, but LDM's VQ models were trained unscaled
    default = 1.0 if config["_class_name"] == "VQModel" else {"AutoencoderKL": 0.18215}.get(config["_class_name"], 1.0)
    return float(config.get("scaling_factor") or default), float(config.get("shift_factor") or 0.0)


def latent_geometry(autoencoder: Any) -> tuple[int, int]:
    """(Channels of a latent, pixels to a side of one of its positions)."""
    config = autoencoder.config
    if isinstance(autoencoder, SpaceToDepth):
        return 3 * config["factor"] ** 2, config["factor"]
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return config["latent_channels"], 2 ** (len(blocks) - 1)
