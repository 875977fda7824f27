"""A diffusion prior: autoencoder, denoiser and noise schedule, behind one interface."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior.geometry import latent_geometry
from flashray.schedule import NoiseSchedule, predict_z0
from flashray.strips import Strips, strips_of

STRIP_ROWS = 512  # pixels; part of what bytes depend on, so it never follows the free memory
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


class LatentPrior(nn.Module):
    """A prior p(x) as x = D(z), z from a diffusion model. Latents have unit variance outside the autoencoder.

    `normalises_over_image` says whether the autoencoder computes statistics or attention over the whole image, so that
    a part of an image alone encodes or decodes to something else than it does within the image.

    Args:
        autoencoder: a diffusers AutoencoderDC, AutoencoderKL or VQModel, a SpaceToDepth for a prior in pixel space, or
            anything with their `encode` and `decode`.
        denoiser: a diffusers UNet2DModel, or a callable (z, timestep_B) with a `.sample`.
        schedule: the denoiser's whole noise schedule.
        sample_size: side in pixels of the square images that the prior was trained on.
        scale: the factor that brings the autoencoder's latents to unit variance.
        shift: subtracted before scaling; a number, or one a channel.
        prediction_type: what the denoiser predicts: `epsilon`, `v_prediction` or `sample`, or for flow matching
            `flow_prediction`, the velocity v = ε - z₀ of x_t = (1-t) z₀ + t ε.
        name, sha256: where the prior came from, and the hash of the files that it was read from.
    """

    autoencoder: Any  # diffusers' models, whose attributes a type checker cannot see
    denoiser: Any
    scale: Tensor
    shift: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        autoencoder: nn.Module,
        denoiser: nn.Module,
        schedule: NoiseSchedule,
        sample_size: int,
        scale: Tensor | float = 1.0,
        shift: Tensor | float = 0.0,
        prediction_type: str = "epsilon",
        name: str = "",
        sha256: str = "",
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTIONS:
            known = ", ".join(PREDICTIONS)
            raise ConfigError(f"prior {name}: prediction_type {prediction_type!r} is not known; give one of {known}")
        self.autoencoder, self.denoiser = autoencoder, denoiser
        self.schedule = schedule
        self.sample_size = sample_size
        self.prediction_type = prediction_type
        self.name, self.sha256 = name, sha256
        self.bf16 = False
        self.normalises_over_image = _looks_over_the_image(autoencoder)
        for buffer, value in {"scale": scale, "shift": shift}.items():
            per_channel = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
            self.register_buffer(buffer, per_channel, persistent=False)
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod.float(), persistent=False)

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """E(x): latents [B, C, h, w] of images in [-1, 1]; before quantisation (VQ), the posterior's mode (KL)."""
        if x_BCHW.shape[2] > STRIP_ROWS and not self.normalises_over_image:
            return self._strips[0](self._encode, x_BCHW)
        return self._encode(x_BCHW)

    def _encode(self, x_BCHW: Tensor) -> Tensor:
        with self.autocast():
            encoded = self.autoencoder.encode(x_BCHW)
        latent = getattr(encoded, "latents", None)
        if latent is None:
            latent = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        return (latent.to(x_BCHW.dtype) - self.shift) * self.scale

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """D(z): images, nominally in [-1, 1] and not clipped; through the quantiser where there is one."""
        if not self.normalises_over_image and z_BCHW.shape[2] > STRIP_ROWS // self._factor:
            return self._strips[1](self._decode, z_BCHW)
        return self._decode(z_BCHW)

    def _decode(self, z_BCHW: Tensor) -> Tensor:
        with self.autocast():
            image = self.autoencoder.decode(z_BCHW / self.scale + self.shift).sample
        return image.to(z_BCHW.dtype)

    @cached_property
    def _factor(self) -> int:
        """Pixels to a side of a latent position."""
        config = getattr(self.autoencoder, "config", None)
        return latent_geometry(self.autoencoder)[1] if config is not None else 1

    @cached_property
    def _strips(self) -> tuple[Strips, Strips]:
        """(The encoder's, the decoder's): what is taller runs in strips, for its memory."""
        channels, factor = latent_geometry(self.autoencoder)
        encoder = strips_of(self.autoencoder.encoder, 3, Fraction(1, factor), STRIP_ROWS)
        return encoder, strips_of(self.autoencoder.decoder, channels, Fraction(factor), max(1, STRIP_ROWS // factor))

    def epsilon(self, z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """ε(z, t), whatever the denoiser itself predicts; t is [B] of the schedule's timesteps (long, or float)."""
        if self.prediction_type == "flow_prediction":
            return self._flow(z_BCHW, timestep_B)[1]
        output = self._output(z_BCHW, timestep_B)
        if self.prediction_type == "epsilon":
            return output
        alpha = self.alphas_cumprod[timestep_B][:, None, None, None].to(output.dtype)
        if self.prediction_type == "v_prediction":  # Salimans & Ho 2022, appendix D
            return alpha.sqrt() * output + (1 - alpha).sqrt() * z_BCHW
        return (z_BCHW - alpha.sqrt() * output) / (1 - alpha).sqrt()

    def predict(self, z_BCHW: Tensor, timestep_B: Tensor, alpha_B: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ0, ε) of one evaluation of the denoiser.

        ẑ0 is (z - √(1-ᾱ) ε)/√ᾱ. A flow's is read off its velocity instead: at t = 1, where its chain begins, ᾱ is 0,
        and ε alone does not say what ẑ0 is. `alpha_B` [B] is ᾱ at these timesteps, in the precision of z.
        """
        if self.prediction_type == "flow_prediction":
            return self._flow(z_BCHW, timestep_B)
        epsilon = self.epsilon(z_BCHW, timestep_B)
        return predict_z0(z_BCHW, epsilon, alpha_B), epsilon

    def autocast(self) -> AbstractContextManager[Any]:
        """The networks run in bfloat16 where `bf16` is set; what they give and take stays in the caller's precision."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def _output(self, z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        """What the denoiser says; of one that also predicts variances the first half of the channels."""
        with self.autocast():
            output: Tensor = self.denoiser(z_BCHW, timestep_B).sample
        return output[:, : z_BCHW.shape[1]].to(z_BCHW.dtype)

    def _flow(self, z_BCHW: Tensor, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
        """(ẑ0, ε) from the velocity at x_t = z √((1-t)² + t²): x_t - t v and x_t + (1-t) v (Lipman et al. 2023)."""
        t = (timestep_B.to(z_BCHW.dtype) / len(self.schedule))[:, None, None, None]
        x = z_BCHW * ((1 - t).square() + t.square()).sqrt()
        velocity = self._output(x, timestep_B)
        return x - t * velocity, x + (1 - t) * velocity


def _looks_over_the_image(autoencoder: nn.Module) -> bool:
    """Whether a module in it normalises over positions or attends to all of them."""
    over_positions = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
    return any(
        isinstance(module, over_positions) or "Attention" in type(module).__name__ for module in autoencoder.modules()
    )
