"""What makes latents that a diffusion model can learn: terms of an objective, and figures to compare by.

Latents here are [B, C, h, w], of zero mean and unit variance a channel over a batch unless said otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.prior import LatentPrior

SIGMAS = (0.46, 0.79)  # noise over signal at which denoisers are compared: flash starts lie about them
_TINY = 1e-6  # added to variances


def standardise(z_BCHW: Tensor) -> Tensor:
    """Each channel of a batch with its mean and standard deviation over the batch and over space taken out.

    Gradients pass through both, so that no penalty on what this gives can be lowered by scaling the latents.
    """
    z = z_BCHW.float()
    mean, var = z.mean(dim=(0, 2, 3), keepdim=True), z.var(dim=(0, 2, 3), keepdim=True, correction=0)
    return (z - mean) / (var + _TINY).sqrt()


def unit_penalty(z_BCHW: Tensor) -> Tensor:
    """Mean over channels of mean² + (log variance)², both over the batch and over space: 0 for unit latents.

    Standardising by a batch's own statistics instead would take each batch's mean colour out of what is decoded.
    """
    z = z_BCHW.float()
    mean, var = z.mean(dim=(0, 2, 3)), z.var(dim=(0, 2, 3), correction=0)
    return (mean.square() + (var + _TINY).log().square()).mean()


def add_latent_noise(z_BCHW: Tensor, most: float) -> Tensor:
    """z + s·n with n ~ N(0, 1) and s ~ U(0, most), drawn once an image."""
    strength_B = most * torch.rand(len(z_BCHW), 1, 1, 1, device=z_BCHW.device)
    return z_BCHW + strength_B * torch.randn_like(z_BCHW)


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
def latent_figures(prior: LatentPrior, x_NCHW: Tensor) -> dict[str, Any]:
    """What a model card says of the latents of photos in [-1, 1].

    `neighbour_roughness` of each channel and its mean, and `wiener_share` at the timestep nearest to each of SIGMAS.
    """
    z_NCHW = torch.cat([prior.encode(x.to(prior.device)).float().cpu() for x in x_NCHW.split(32)])
    each = neighbour_roughness(z_NCHW)
    sigma_T = ((1 - prior.alphas_cumprod) / prior.alphas_cumprod).sqrt().cpu()
    nearest = {sigma: int((sigma_T - sigma).abs().argmin()) for sigma in SIGMAS}
    return {
        "roughness": each.mean().item(),
        "roughness_each": each.tolist(),
        "wiener_share": {str(sigma): wiener_share(prior, z_NCHW, timestep) for sigma, timestep in nearest.items()},
    }


def neighbour_roughness(z_NCHW: Tensor) -> Tensor:
    """[C]: 1 minus the correlation of horizontal neighbours in each channel.

    0 for latents as smooth as a constant, 1 for white ones; pixels averaged 4×4 have about .1.
    """
    z = z_NCHW.double().transpose(0, 1)
    left, right = z[..., :-1].flatten(1), z[..., 1:].flatten(1)
    left, right = left - left.mean(dim=1, keepdim=True), right - right.mean(dim=1, keepdim=True)
    norms = left.square().mean(dim=1).sqrt() * right.square().mean(dim=1).sqrt()
    return (1 - (left * right).mean(dim=1) / norms).float()


@torch.no_grad()
def wiener_share(prior: LatentPrior, z_NCHW: Tensor, timestep: int) -> float:
    """The denoiser's error over that of an elementwise Wiener filter, which knows each channel's variance alone.

    Both are mean squared errors of z₀ from √ᾱ z₀ + √(1-ᾱ) ε with noise that is the same at every call. 1: the denoiser
    knows nothing of how latents hang together. 0: it knows all.
    """
    alpha = prior.alphas_cumprod[timestep].item()
    sigma2 = (1 - alpha) / alpha
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for z in z_NCHW.split(32):
        noise = torch.randn(z.shape, generator=generator)
        noisy = (alpha**0.5 * z.cpu() + (1 - alpha) ** 0.5 * noise).to(prior.device)
        timestep_B = torch.full((len(z),), timestep, device=prior.device)
        epsilon = prior.epsilon(noisy, timestep_B).float().cpu()
        total = total + sigma2 * (epsilon - noise).square().sum()
    variance_C = z_NCHW.float().var(dim=(0, 2, 3)).cpu()
    wiener = (variance_C * sigma2 / (variance_C + sigma2)).mean()
    return (total / z_NCHW.numel() / wiener).item()
