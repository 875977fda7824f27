"""How learnable a prior's latents are, before any denoiser is trained for long."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashray.prior import LatentPrior

SIGMAS = (0.46, 0.79)  # noise over signal at which denoisers are compared: flash starts lie about them


@torch.no_grad()
def latent_figures(prior: LatentPrior, x_NCHW: Tensor) -> dict[str, Any]:
    """What a model card says of the latents of photos in [-1, 1].

    Returns:
        roughness: the mean of `neighbour_roughness` over channels; roughness_each: a number a channel.
        wiener_share: `wiener_share` at the timestep nearest to each of SIGMAS.
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
