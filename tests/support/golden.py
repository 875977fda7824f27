"""The golden numbers, and the toy prior that they were computed with."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule

FOLDER = Path(os.environ.get("FLASHRAY_REFERENCE_DIR", Path(__file__).parents[1] / "reference"))


@cache
def _file(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}_reference.npz") as file:
        return dict(file)


def golden(key: str, file: str = "flash") -> Tensor:
    return torch.from_numpy(_file(file)[key])


def keys(file: str = "flash") -> list[str]:
    return sorted(_file(file))


class ToyAutoencoder(nn.Module):
    """The autoencoder of the golden numbers, with diffusers' interface."""

    def encode(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent=torch.tanh(F.conv2d(x, golden("encoder_weight").to(x), stride=4)))

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=torch.tanh(F.conv_transpose2d(z, golden("decoder_weight").to(z), stride=4)))


class ToyDenoiser(nn.Module):
    """The denoiser of the golden numbers."""

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        features = torch.tanh(F.conv2d(z, golden("denoiser_weight").to(z), padding=1))
        gain = 0.7 + 0.3 * torch.cos(timestep.to(z) / 1000)
        return SimpleNamespace(sample=features * gain[:, None, None, None])


def toy_schedule() -> NoiseSchedule:
    return NoiseSchedule.from_alphas_cumprod(golden("alphas_cumprod"))


def toy_prior() -> LatentPrior:
    return LatentPrior(ToyAutoencoder(), ToyDenoiser(), toy_schedule(), sample_size=32, name="toy")
