"""Stage one of a prior: the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from flashray.metrics import LPIPS, score
from flashray.training.loop import Task
from flashray.training.photo_windows import random_views


@dataclass(frozen=True)
class AutoencoderConfig:
    """A deep-compression autoencoder of residual blocks: no layer works at full resolution.

    Attributes:
        channels: of each resolution from full (a pixel-unshuffled convolution only) to 1/8.
        encoder_layers, decoder_layers: residual blocks at each resolution.
        crop: side of the training crops; the model is convolutional, and with smaller crops it sees more photos in the
            same time.
        lpips: weight of LPIPS(AlexNet) in addition to L1 + MSE.
        latent_noise: each image's latent gets noise of std U(0, latent_noise) in units of the batch's latent std, so
            that channels with little information shrink and the decoder tolerates small latent errors.
    """

    latent_channels: int = 32
    channels: tuple[int, ...] = (32, 64, 128, 256)
    encoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    decoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    crop: int = 64
    lpips: float = 0.2
    latent_noise: float = 0.15
    latent_penalty: float = 1e-4


def make_autoencoder(config: AutoencoderConfig) -> AutoencoderDC:
    """A freshly initialised autoencoder."""
    no_attention = tuple(() for _ in config.channels)
    return AutoencoderDC(
        in_channels=3,
        latent_channels=config.latent_channels,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=no_attention,
        decoder_qkv_multiscales=no_attention,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
        scaling_factor=1.0,
    )


class AutoencoderTask(Task):
    """L1 + MSE + lpips · LPIPS between x and D(E(x) + noise), with a small penalty on the latents' size."""

    model: Any

    def __init__(self, model: AutoencoderDC, config: AutoencoderConfig, lpips: LPIPS | None, val_NCHW: Tensor) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.lpips = lpips
        self.val = val_NCHW

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x = random_views(window_BCHW, self.config.crop, generator)
        z = self.model.encode(x).latent
        strength_B = torch.rand(len(z), 1, 1, 1, device=z.device) * self.config.latent_noise
        noisy = z + strength_B * z.detach().float().std() * torch.randn_like(z)
        y = self.model.decode(noisy).sample.float()
        l1, mse = (y - x).abs().mean(), (y - x).square().mean()
        penalty = z.float().square().mean()
        loss = l1 + mse + self.config.latent_penalty * penalty
        terms = {"l1": l1, "mse": mse, "latent_square": penalty}
        if self.lpips is not None and self.config.lpips:
            terms["lpips"] = self.lpips(y, x).mean()
            loss = loss + self.config.lpips * terms["lpips"]
        return {"loss": loss, **terms}

    def parts(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder, *([self.lpips] if self.lpips is not None else [])]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean PSNR, SSIM and LPIPS(AlexNet) of D(E(x))."""
        device = next(self.model.parameters()).device
        rows: list[dict[str, Tensor]] = []
        for x in self.val.split(32):
            x = x.to(device)
            y = self.model.decode(self.model.encode(x).latent).sample.clamp(-1, 1)
            rows.append(score(y, x, self.lpips))
        return {name: torch.cat([row[name] for row in rows]).mean().item() for name in rows[0]}


@torch.no_grad()
def latent_scale(model: Any, x_NCHW: Tensor, device: str | torch.device) -> float:
    """The scaling_factor that brings the latents of these photos to a mean square of 1; the model is on `device`."""
    z = torch.cat([model.encode(x.to(device)).latent.float().cpu() for x in x_NCHW.split(32)])
    return (1 / z.square().mean().sqrt()).item()
