"""The measurement's noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashray.seeding import STREAM_MEASUREMENT, normal

GOLDEN = (math.sqrt(5) - 1) / 2


def draw_noise_std(noise: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """[count] standard deviations drawn evenly from (low, high); one number draws nothing."""
    low, high = noise
    return torch.full((count,), low) if low == high else low + (high - low) * torch.rand(count, generator=generator)


def spread_noise_std(noise: tuple[float, float], start: int, count: int) -> Tensor:
    """[count] standard deviations spread evenly over (low, high), for the images start, start + 1, ….

    Steps of the golden ratio: any range of images covers (low, high), and the value of an image depends only on its
    number.
    """
    low, high = noise
    return (low + (high - low) * (GOLDEN * torch.arange(start, start + count, dtype=torch.float64) % 1)).float()


def add_noise(y_BCHW: Tensor, noise_std_B: Tensor, seed_B: Tensor) -> Tensor:
    """y + n with Gaussian n of each image's own seed.

    Args:
        y_BCHW: measurements in [-1, 1].
        noise_std_B: standard deviations on the [0, 1] scale (doubled here to act on [-1, 1]).
        seed_B: the images' seeds; the same seed draws the same noise in any batch.
    """
    noise = normal(seed_B, seed_B.new_zeros(len(seed_B)), tuple(y_BCHW.shape[1:]), STREAM_MEASUREMENT)
    return y_BCHW + 2 * noise_std_B[:, None, None, None] * noise.to(y_BCHW)
