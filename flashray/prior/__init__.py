"""Diffusion priors: autoencoder, denoiser and noise schedule."""

from __future__ import annotations

from flashray.prior.check import check_prior
from flashray.prior.export import export_null_prompt
from flashray.prior.folder import bundled
from flashray.prior.geometry import latent_geometry
from flashray.prior.latent_prior import LatentPrior
from flashray.prior.loading import hash_weights, load_autoencoder, load_prior
from flashray.prior.pixel_space import SpaceToDepth
from flashray.prior.single_file import convert_single_file

__all__ = [
    "LatentPrior",
    "SpaceToDepth",
    "bundled",
    "check_prior",
    "convert_single_file",
    "export_null_prompt",
    "hash_weights",
    "latent_geometry",
    "load_autoencoder",
    "load_prior",
]
