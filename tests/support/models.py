"""Tiny diffusers models with random weights, and pipelines of them in the layouts that users have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDIMScheduler, UNet2DModel, VQModel
from skimage import data
from torch.nn import functional as F

from flashray.prior import LatentPrior
from flashray.severity import SeverityEncoder

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


@torch.no_grad()
def spread_severities(encoder: SeverityEncoder, prior: LatentPrior) -> None:
    """Scale an untrained encoder's variance head, so that noisy crops of a photo get many severities.

    ln σ̂² of these crops has mean -3 and standard deviation 1; ẑ differs from E(y) a little.
    """
    photo = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 127.5 - 1
    crops = photo.unfold(1, SIDE, 64).unfold(2, SIDE, 64).reshape(3, -1, SIDE, SIDE).transpose(0, 1)
    crops = crops + 0.1 * torch.randn(crops.shape)
    change, variance, *_ = encoder.net.heads
    torch.nn.init.normal_(change.weight, std=0.01)

    def said() -> torch.Tensor:
        seen = torch.cat([F.pixel_unshuffle(crops, encoder.factor), prior.encode(crops)], dim=1)
        return encoder.net(seen)[:, encoder.given[0]].mean(dim=(1, 2))

    variance[-1].weight /= said().std()
    variance[-1].bias -= 3 + said().mean()
