"""What makes latents that a diffusion model can learn: terms for the autoencoder's objective, and standardisation.

Latents here are [B, C, h, w], of zero mean and unit variance a channel over a batch unless said otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-6  # added to variances


def standardise(z_BCHW: Tensor) -> Tensor:
    """Each channel of a batch with its mean and standard deviation over the batch and over space taken out.

    Gradients pass through both statistics, so that no loss can be lowered by scaling the latents.
    """
    z = z_BCHW.float()
    mean, var = z.mean(dim=(0, 2, 3), keepdim=True), z.var(dim=(0, 2, 3), keepdim=True, correction=0)
    return (z - mean) / (var + _TINY).sqrt()


def add_latent_noise(z_BCHW: Tensor, most: float, unit: Tensor | float = 1.0) -> Tensor:
    """z + s·unit·n with n ~ N(0, 1) and s ~ U(0, most), drawn once an image; `unit` is the latents' std."""
    strength_B = most * torch.rand(len(z_BCHW), 1, 1, 1, device=z_BCHW.device)
    return z_BCHW + unit * strength_B * torch.randn_like(z_BCHW)


def roughness(z_BCHW: Tensor) -> Tensor:
    """Half the mean squared difference of neighbouring positions, over rows and columns.

    Of standardised latents it is the mean over channels of 1 minus the correlation of neighbours: 0 for constant
    latents, about .1 for photos averaged 4×4, 1 for white noise.
    """
    across = (z_BCHW[..., 1:] - z_BCHW[..., :-1]).square().mean()
    down = (z_BCHW[..., 1:, :] - z_BCHW[..., :-1, :]).square().mean()
    return (across + down) / 4


def halve_latent(z_BCHW: Tensor) -> Tensor:
    """Means of 2×2 positions."""
    return F.avg_pool2d(z_BCHW, 2)


def halve_image(x_BCHW: Tensor) -> Tensor:
    """Images [B, 3, H, W] at half their side, bicubic with antialiasing."""
    return F.interpolate(x_BCHW, scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False)


@torch.no_grad()
def latent_statistics(model: Any, x_NCHW: Tensor, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """(mean_C, std_C) of an autoencoder's latents of photos in [-1, 1]; the model is on `device`."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in x_NCHW.split(32):
        z = model.encode(x.to(device)).latent.double().cpu()
        total = total + z.sum(dim=(0, 2, 3))
        squares = squares + z.square().sum(dim=(0, 2, 3))
        count += z.shape[0] * z.shape[2] * z.shape[3]
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=_TINY).sqrt().float()


@torch.no_grad()
def fold_statistics(model: Any, mean_C: Tensor, std_C: Tensor) -> None:
    """Write the standardisation of the latents into the encoder's last convolution, so that E gives it by itself.

    The decoder is left as it is: it was trained on standardised latents.
    """
    last = model.encoder.conv_out
    mean, std = mean_C.to(last.weight), std_C.to(last.weight)
    last.weight.div_(std[:, None, None, None])
    last.bias.copy_((last.bias - mean) / std)
