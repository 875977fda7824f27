"""Measurements y = A(x) + n: an image degraded by its seed or at random, or an observed one in the same form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Operator, Parameters
from flashray.seeding import STREAM_MEASUREMENT, generator_of, normal

GOLDEN = (math.sqrt(5) - 1) / 2


def draw_parameters(degradation: Degradation, seed: int) -> Parameters:
    """The parameters, [1, …] each, of the degradation of the image with this seed."""
    return degradation.sample_parameters(generator_of(seed, "degradation"), 1)


def spread_noise_std(noise: tuple[float, float], start: int, count: int) -> Tensor:
    """[count] standard deviations spread evenly over (low, high), for the images start, start + 1, ….

    Steps of the golden ratio: any range of images covers (low, high), and an image's value depends only on its number.
    """
    low, high = noise
    return (low + (high - low) * (GOLDEN * torch.arange(start, start + count, dtype=torch.float64) % 1)).float()


def add_noise(y_BCHW: Tensor, noise_std_B: Tensor, seed_B: Tensor) -> Tensor:
    """y in [-1, 1] + n with Gaussian n of each image's own seed, the same in any batch.

    noise_std is on the [0, 1] scale, and doubled here to act on [-1, 1].
    """
    noise = normal(seed_B, seed_B.new_zeros(len(seed_B)), tuple(y_BCHW.shape[1:]), STREAM_MEASUREMENT)
    return y_BCHW + 2 * noise_std_B[:, None, None, None] * noise.to(y_BCHW)


def observe(y_BCHW: Tensor, operator: Operator, noise_std_B: Tensor, seed_B: Tensor) -> Tensor:
    """Observed measurements in [-1, 1] in the form of simulated ones: where pixels are missing, black and noise.

    The input of severity encoders and stopping rules then does not depend on what a file holds in its holes.
    """
    return operator.blank(y_BCHW, add_noise(torch.full_like(y_BCHW, -1), noise_std_B, seed_B))


@torch.no_grad()
def degrade(
    x_BCHW: Tensor, degradation: Degradation, noise: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """For training: (a measurement of each image in [-1, 1], of random severity, as input of a network; its parameters)

    The parameters are on the images' device, `noise_std` among them: each image draws its own from `noise`, (low, high)
    on the [0, 1] scale. `generator`, on the CPU, draws severities and noise_std. The noise itself comes from torch's
    global generator, which works on any device and which the training loop seeds at every epoch.
    """
    count, device, (low, high) = len(x_BCHW), x_BCHW.device, noise
    parameters = degradation.sample_parameters(generator, count)
    if low == high:  # draws nothing
        noise_std_B = torch.full((count,), low)
    else:
        noise_std_B = low + (high - low) * torch.rand(count, generator=generator)
    on_device = {name: value.to(device) for name, value in (parameters | {"noise_std": noise_std_B}).items()}
    with torch.autocast(device.type, enabled=False):
        operator = degradation.bind(on_device, (x_BCHW.shape[2], x_BCHW.shape[3]))
        y = operator.A(x_BCHW)
        seen = operator.pseudo_image(y + 2 * on_device["noise_std"][:, None, None, None] * torch.randn_like(y))
    return seen, on_device


@torch.no_grad()
def degrade_at(
    x_BCHW: Tensor, level_B: Tensor, degradation: Degradation, noise_std_B: Tensor, seed_B: Tensor
) -> Tensor:
    """For validation: a measurement of each image in [-1, 1] at severity 0 (the mildest) … 1, as input of a network.

    Its noise comes from its own seed; parameters that the severity does not decide are the same at every level.
    """
    drawn = degradation.parameters_at(level_B.cpu(), torch.Generator().manual_seed(0))
    parameters = {name: value.to(x_BCHW.device) for name, value in drawn.items()}
    operator = degradation.bind(parameters, (x_BCHW.shape[2], x_BCHW.shape[3]))
    return operator.pseudo_image(add_noise(operator.A(x_BCHW), noise_std_B.to(x_BCHW.device), seed_B))
