"""Simulated measurements: a clean image degraded deterministically by its seed."""

from __future__ import annotations

from torch import Tensor

from flashray.degradations.base import Degradation, Parameters
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
    return add_noise(operator.measure(x_BCHW), noise_std_B, seed_B)
