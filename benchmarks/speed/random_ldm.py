"""A prior of a published LDM's shape with random weights: what speed and memory depend on, without the download."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel, VQModel

from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule

LDM = "random-ldm"


def random_ldm(device: str | torch.device = "cpu", seed: int = 0) -> LatentPrior:
    """UNet and VQ-f4 autoencoder of the sizes of CompVis/ldm-celebahq-256: 256×256 images, 3×64×64 latents."""
    torch.manual_seed(seed)
    with torch.device(device):
        unet = UNet2DModel(
            sample_size=64,
            in_channels=3,
            out_channels=3,
            block_out_channels=(224, 448, 672, 896),
            down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * 3),
            up_block_types=(*["AttnUpBlock2D"] * 3, "UpBlock2D"),
            attention_head_dim=32,
            norm_eps=1e-6,
        )
        autoencoder = VQModel(
            sample_size=256,
            block_out_channels=(128, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=2,
            latent_channels=3,
            num_vq_embeddings=8192,
        )
    noise = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    schedule = NoiseSchedule.from_scheduler_config(noise)
    prior = LatentPrior(autoencoder, unet, schedule, sample_size=256, name=LDM)
    return prior.to(device).eval().requires_grad_(False)
