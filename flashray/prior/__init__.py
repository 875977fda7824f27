"""Diffusion priors: autoencoder, denoiser and noise schedule."""

from __future__ import annotations

from flashray.prior.latent_prior import (
    LatentPrior,
    bundled,
    hash_weights,
    latent_geometry,
    load_autoencoder,
    load_prior,
)
from flashray.prior.pixel_space import SpaceToDepth

__all__ = [
    "LatentPrior",
    "SpaceToDepth",
    "bundled",
    "hash_weights",
    "latent_geometry",
    "load_autoencoder",
    "load_prior",
]
