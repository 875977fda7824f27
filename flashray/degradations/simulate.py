"""Measurements: a clean image degraded by its seed, or an observed one brought to the same form."""

from __future__ import annotations

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Operator, Parameters
from flashray.degradations.noise import add_noise
from flashray.seeding import generator_of


def draw_parameters(degradation: Degradation, seed: int) -> Parameters:
    """The parameters, [1, …] each, of the degradation of the image with this seed."""
    return degradation.sample_parameters(generator_of(seed, "degradation"), 1)


def simulate(
    x_BCHW: Tensor, degradation: Degradation, parameters: Parameters, noise_std_B: Tensor, seed_B: Tensor
) -> Tensor:
    """y = A(x) + n of clean images in [-1, 1]; every argument is on the images' device."""
    operator = degradation.bind(parameters, (x_BCHW.shape[2], x_BCHW.shape[3]))
    return add_noise(operator.A(x_BCHW), noise_std_B, seed_B)


def observe(y_BCHW: Tensor, operator: Operator, noise_std_B: Tensor, seed_B: Tensor) -> Tensor:
    """Observed measurements in [-1, 1] in the form of simulated ones: where pixels are missing, black and noise.

    The input of severity encoders and stopping rules then does not depend on what a file holds in its holes.
    """
    return operator.blank(y_BCHW, add_noise(torch.full_like(y_BCHW, -1), noise_std_B, seed_B))
