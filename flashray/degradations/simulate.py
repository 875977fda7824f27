"""Measurements: a clean image degraded deterministically by its seed, or an observed one brought to the same form."""

from __future__ import annotations

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Operator, Parameters
from flashray.degradations.noise import add_noise
from flashray.seeding import generator_of


def draw_parameters(degradation: Degradation, seed: int) -> Parameters:
    """The parameters, [1, …] each, that the image of this seed is degraded with."""
    return degradation.sample_parameters(generator_of(seed, "degradation"), 1)


def simulate(
    x_BCHW: Tensor, degradation: Degradation, parameters: Parameters, noise_std_B: Tensor, seed_B: Tensor
) -> Tensor:
    """y = A(x) + n of clean images in [-1, 1]; every argument is on the images' device."""
    operator = degradation.bind(parameters, (x_BCHW.shape[2], x_BCHW.shape[3]))
    return add_noise(operator.A(x_BCHW), noise_std_B, seed_B)


def observe(y_BCHW: Tensor, operator: Operator, noise_std_B: Tensor, seed_B: Tensor) -> Tensor:
    """Observed measurements in [-1, 1] as simulated ones are: where a mask hides the image, black and noise.

    So severity encoders and stopping rules see what they were made for, whatever a file holds in its holes.
    """
    return operator.blank(y_BCHW, add_noise(torch.full_like(y_BCHW, -1), noise_std_B, seed_B))
