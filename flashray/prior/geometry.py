"""The size of an autoencoder's latents."""

from __future__ import annotations

from typing import Any

from flashray.errors import ConfigError
from flashray.prior.pixel_space import SpaceToDepth


def latent_geometry(autoencoder: Any) -> tuple[int, int]:
    """(Channels of a latent, pixels to a side of one of its positions)."""
    config = autoencoder.config
    if isinstance(autoencoder, SpaceToDepth):
        return 3 * config["factor"] ** 2, config["factor"]
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return config["latent_channels"], 2 ** (len(blocks) - 1)


def check_crop(name: str, side: int, autoencoder: Any) -> None:
    """ConfigError unless squares of this option's side are whole positions of the latents."""
    if side % (factor := latent_geometry(autoencoder)[1]):
        raise ConfigError(f"{name} is {side} pixels; give a multiple of {factor}, the latent factor")
