"""Tiny diffusers models with random weights, and pipelines of them in the layouts that users have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDIMScheduler, UNet2DModel, VQModel
from torch import Tensor, nn

from flashray.prior import LatentPrior
from flashray.severity import SeverityEncoder, estimate

IMAGES = 24  # of the fixture `photos`
SIDE = 32  # of the images; latents are 8×8 with 4 channels


def dc(**settings: Any) -> AutoencoderDC:
    torch.manual_seed(1)
    config: dict[str, Any] = {
        "latent_channels": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (8, 16, 16),
        "decoder_block_out_channels": (8, 16, 16),
        "encoder_layers_per_block": (0, 1, 1),
        "decoder_layers_per_block": (0, 1, 1),
        "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), ()),
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "upsample_block_type": "pixel_shuffle",
        "downsample_block_type": "pixel_unshuffle",
        "scaling_factor": 2.5,
    }
    return AutoencoderDC(**(config | settings))


def kl(**settings: Any) -> AutoencoderKL:
    torch.manual_seed(2)
    config: dict[str, Any] = {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return AutoencoderKL(**(config | settings))


def vq(**settings: Any) -> VQModel:
    torch.manual_seed(3)
    config: dict[str, Any] = {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "num_vq_embeddings": 32,
    }
    return VQModel(**(config | settings))


AUTOENCODERS = {"AutoencoderDC": dc, "AutoencoderKL": kl, "VQModel": vq}


def severity_encoder(prior: LatentPrior, degradation: str = "gaussian_blur", **settings: Any) -> SeverityEncoder:
    """A small severity encoder of random weights: a new one has zeros in it, and would say the same of any image."""
    config: dict[str, Any] = {
        "degradation_settings": {},
        "noise_std": 0.05,
        "parameter_ranges": {"blur_std": [0.3, 3.0], "noise_std": [0.01, 0.2]},
        "widths": (8, 12, 16),
        "blocks": (1, 1, 1),
    }
    encoder = SeverityEncoder.from_prior(prior, degradation, **(config | settings))
    return shaken(encoder).eval()


def shaken(encoder: SeverityEncoder, seed: int = 5) -> SeverityEncoder:
    """The same encoder with random weights everywhere, of the size that keeps features about as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                size = module.weight[0].numel() ** -0.5
                module.weight.copy_(size * torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))
    return encoder


@torch.no_grad()
def spread_sigma(encoder: SeverityEncoder, prior: LatentPrior, x_BCHW: Tensor, low: float, high: float) -> None:
    """Change the head of ln σ̂² so that σ̂ of nine in ten positions of these images is between low and high."""
    last = encoder.net.heads[1][-1]
    for _ in range(2):  # the first answers may have been clamped
        said = estimate(encoder, prior, x_BCHW).log_variance_Bhw.flatten()
        least, most = said.quantile(0.05), said.quantile(0.95)
        scale = 2 * math.log(high / low) / (most - least)
        last.weight *= scale
        last.bias.copy_(scale * (last.bias - least) + 2 * math.log(low))


def unet() -> UNet2DModel:
    torch.manual_seed(4)
    return UNet2DModel(
        sample_size=SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def scheduler(**settings: Any) -> DDIMScheduler:
    config: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(config | settings))


def save_pipeline(folder: Path, autoencoder: Any, autoencoder_name: str = "vqvae", **scheduling: Any) -> Path:
    """A pipeline folder as this project writes it."""
    autoencoder.save_pretrained(folder / autoencoder_name, safe_serialization=True)
    unet().save_pretrained(folder / "unet", safe_serialization=True)
    scheduler(**scheduling).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "LDMPipeline",
        autoencoder_name: ["diffusers", type(autoencoder).__name__],
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def edit_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    merged = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
