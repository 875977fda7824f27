"""Augmentation: changes that turn a photo into a different one."""

from __future__ import annotations

import torch
from torch import Tensor

GAIN = 1.6  # contrast is multiplied by 1 / GAIN … GAIN
SHIFT = 0.25  # and brightness moved by as much, on [-1, 1]


def vary(x_BCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Square images in [-1, 1]: a random `share` of them turned, with other colours, contrast and brightness.

    Rotation by quarter turns, exchanged channels, contrast scaled about the image's mean and shifted brightness, each
    drawn once for each image. Detail and contrast decide how hard an image is to encode: this varies the position and
    strength of each photo's detail, so that a few thousand photos are not memorised.

    Args:
        generator: on the CPU.
    """
    batch, channels, device = len(x_BCHW), x_BCHW.shape[1], x_BCHW.device

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)).to(device)

    chosen, half, quarter = draw(0, 1) < share, draw(0, 1) < 0.5, draw(0, 1) < 0.5
    x = torch.where(half, x_BCHW.flip(2, 3), x_BCHW)
    x = torch.where(quarter, x.transpose(2, 3).flip(3), x)
    order_BC = torch.rand(batch, channels, generator=generator).argsort(dim=1).to(device)
    x = x[torch.arange(batch, device=device)[:, None], order_BC]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (mean + GAIN ** draw(-1, 1) * (x - mean) + draw(-SHIFT, SHIFT)).clamp(-1, 1)
    return torch.where(chosen, x, x_BCHW)
