"""Pixels as latents: the autoencoder of a pixel-space prior."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn


class SpaceToDepth(nn.Module, ConfigMixin):
    """Each block of factor × factor pixels becomes the 3 · factor² channels of one position: exact, without weights.

    Factor 1 is the identity. The map is orthogonal, so Latent-DPS with it is DPS in pixel space (Chung et al. 2023,
    Algorithm 1): white noise stays white, and gradients keep their length. The denoiser just sees blocks of pixels, at
    1/factor² of the positions.

    `factor` is the side of a block; it divides the images' sides. `scaling_factor` brings the pixels in [-1, 1] to unit
    mean square, applied outside as every autoencoder's is; 1 leaves them as they are, which is how DDPM's models are
    trained.
    """

    config_name = "config.json"
    encoder: nn.Module
    decoder: nn.Module

    @register_to_config
    def __init__(self, *, factor: int = 1, scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.PixelUnshuffle(factor), nn.PixelShuffle(factor)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the config, which is all there is."""
        ConfigMixin.save_config(self, folder)

    def encode(self, x_BCHW: Tensor) -> SimpleNamespace:
        """`latent`: [B, 3 · factor², H / factor, W / factor]."""
        return SimpleNamespace(latent=self.encoder(x_BCHW))

    def decode(self, z_BCHW: Tensor) -> SimpleNamespace:
        """`sample`: [B, 3, H, W]."""
        return SimpleNamespace(sample=self.decoder(z_BCHW))
