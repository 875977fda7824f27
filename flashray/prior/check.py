"""Whether a prior's networks behave as its configs say, on one test picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.latent_prior import LatentPrior

LEAST_PSNR = 20.0  # dB of decode(encode(x)) on [-1, 1]; trained autoencoders reach 25 and more
STD_RANGE = (0.25, 4.0)  # of the picture's latents; LDM's usual factor forgotten, or given twice, is a factor of 5.5


@torch.no_grad()
def check_prior(prior: LatentPrior) -> None:
    """Run the networks on a test picture of the prior's size: one encoder, decoder and denoiser evaluation.

    ConfigError if the autoencoder does not give the picture back, if its latents are far from unit variance (with the
    factor that would bring them there), or if the denoiser's answer is nearer to what another prediction_type stands
    for.
    """
    x = picture(prior.sample_size).to(prior.device)
    z = prior.encode(x)
    if not torch.isfinite(z).all():
        raise ConfigError(f"prior {prior.name}: the test picture's latents are not finite")
    _check_reconstruction(prior, x, z)
    _check_scale(prior, z)
    _check_prediction(prior, z)


def picture(side: int) -> Tensor:
    """[1, 3, side, side] in [-1, 1]: noise whose amplitudes fall with frequency as a photo's do, mostly grey."""
    generator = torch.Generator().manual_seed(0)
    across, down = torch.fft.rfftfreq(side), torch.fft.fftfreq(side)
    radius = (across[None, :].square() + down[:, None].square()).sqrt().clamp(min=1 / side)
    spectrum = torch.fft.rfft2(torch.randn(4, side, side, generator=generator)) / radius**1.5
    waves = torch.fft.irfft2(spectrum, s=(side, side))
    waves = (waves - waves.mean(dim=(1, 2), keepdim=True)) / waves.std(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    return (0.45 * waves[:1] + 0.1 * waves[1:]).clamp(-1, 1)[None]


def _check_reconstruction(prior: LatentPrior, x: Tensor, z: Tensor) -> None:
    error = (prior.decode(z) - x).square().mean().item()
    psnr = 10 * math.log10(4 / max(error, 1e-20)) if math.isfinite(error) else -math.inf
    if psnr < LEAST_PSNR:
        raise ConfigError(
            f"prior {prior.name}: the autoencoder gives a test picture back with {psnr:.1f} dB, and at least "
            f"{LEAST_PSNR:g} are asked for; its weights are not those of its config, or it was not trained on images "
            f"in [-1, 1] (latent scale {_scale(prior)})"
        )


def _check_scale(prior: LatentPrior, z: Tensor) -> None:
    std = z.std().item()
    if not STD_RANGE[0] <= std <= STD_RANGE[1]:
        raise ConfigError(
            f"prior {prior.name}: the latents of a test picture have a standard deviation of {std:.3g} and should have "
            f"about 1: the latent scale is {_scale(prior)}, and about {prior.scale.mean().item() / std:.3g} would fit; "
            "correct scaling_factor in the autoencoder's config.json, or std in latent_statistics.json"
        )


def _check_prediction(prior: LatentPrior, z0: Tensor) -> None:
    """At equal parts of signal and noise, where the kinds of prediction are far from each other."""
    schedule, flow = prior.schedule, prior.prediction_type == "flow_prediction"
    time = schedule.snr_inverse(torch.ones(1))
    index = (schedule.timesteps.double() - time).abs().argmin()
    alpha = schedule.alphas_cumprod[index].to(z0)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(1)).to(z0)
    z = alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
    taken = z / (alpha.sqrt() + (1 - alpha).sqrt()) if flow else z
    answer = prior._output(taken, schedule.timesteps[index][None].to(z0.device))
    meant = {"epsilon": noise, "sample": z0}
    if flow:
        meant["flow_prediction"] = noise - z0
    else:
        meant["v_prediction"] = alpha.sqrt() * noise - (1 - alpha).sqrt() * z0
    error = {name: (answer - value).square().mean().item() for name, value in meant.items()}
    nearest = min(error, key=lambda name: error[name])
    if not math.isfinite(error[nearest]):
        raise ConfigError(f"prior {prior.name}: the denoiser's answer is not finite")
    if nearest != prior.prediction_type:
        raise ConfigError(
            f"prior {prior.name}: prediction_type is {prior.prediction_type}, and the denoiser's answer is nearer to "
            f"{nearest} (mean squared errors {error[prior.prediction_type]:.3g} and {error[nearest]:.3g}); correct the "
            "scheduler's config"
        )


def _scale(prior: LatentPrior) -> str:
    values = prior.scale.flatten().tolist()
    return f"{values[0]:g}" if len(values) == 1 else f"of {len(values)} channels, {min(values):g} … {max(values):g}"
