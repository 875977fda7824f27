"""Stage one of a prior: the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from flashray.metrics import LPIPS, score
from flashray.prior.geometry import check_crop
from flashray.training.discriminator import PatchDiscriminator, hinge_losses
from flashray.training.latents import (
    add_latent_noise,
    halve_image,
    halve_latent,
    neighbour_roughness,
    roughness,
    standardise,
    unit_penalty,
)
from flashray.training.loop import Task
from flashray.training.photo_windows import random_views


@dataclass(frozen=True)
class AutoencoderConfig:
    """A deep-compression autoencoder of residual blocks: no layer works at full resolution.

    It is convolutional and normalises each position alone, so that images of any size pass.

    Attributes:
        latent_channels: of the latents.
        channels: of each resolution from full (a pixel-unshuffled convolution only) down to the latents': three give
            latents at 1/4, four at 1/8.
        encoder_layers, decoder_layers: residual blocks at each resolution.
        shortcut: add means of pixel-unshuffled features to the latents and their copies to the decoder's first
            features. It reconstructs well and hands blocks of pixels through, which no denoiser can learn.
        unit: weight of the penalty that holds each latent channel at zero mean and unit variance. What is left of
            both is measured when training ends and taken out by the prior's `latent_statistics.json`.
        crop: side of the training crops; smaller ones see more photos in the same time.
        lpips: weight of LPIPS beside L1 + MSE.
        lpips_net: the network of that LPIPS; VGG costs as much as the autoencoder itself.
        latent_noise: each latent gets noise of std U(0, latent_noise), so that the decoder forgives small latent
            errors. Alone it makes latents white: what is to survive the noise is spread over all frequencies.
        smoothness: weight of the mean squared difference of neighbouring latents, which makes them smooth as an image.
        equivariance: weight of the same distance, without noise, between the halved image and the decoded halved
            latent: the scale equivariance that makes latents keep an image's spectrum (Skorokhodov et al. 2025).
        discriminator: weight of a patch discriminator's loss, which is trained beside the autoencoder; 0 makes none.
        part: `decoder` trains the decoder alone, on the latents as they are.
    """

    latent_channels: int = 32
    channels: tuple[int, ...] = (32, 64, 128, 256)
    encoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    decoder_layers: tuple[int, ...] = (0, 1, 2, 2)
    shortcut: bool = False
    unit: float = 0.1
    crop: int = 64
    lpips: float = 0.2
    lpips_net: Literal["alex", "vgg"] = "alex"
    latent_noise: float = 0.15
    smoothness: float = 0.0
    equivariance: float = 0.0
    discriminator: float = 0.0
    part: Literal["all", "decoder"] = "all"


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
        encoder_out_shortcut=config.shortcut,
        decoder_in_shortcut=config.shortcut,
        scaling_factor=1.0,
    )


class AutoencoderTask(Task):
    """L1 + MSE + lpips · LPIPS between x and D(E(x) + noise), with terms that make the latents learnable."""

    model: Any
    companion: PatchDiscriminator | None

    def __init__(self, model: AutoencoderDC, config: AutoencoderConfig, lpips: LPIPS | None, val_NCHW: Tensor) -> None:
        super().__init__()
        check_crop("autoencoder.crop", config.crop, model)
        self.model, self.config = model, config
        self.lpips = lpips
        self.val = val_NCHW
        self.companion = PatchDiscriminator() if config.discriminator else None
        if config.part == "decoder":
            model.encoder.requires_grad_(False)

    def distance(self, y_BCHW: Tensor, x_BCHW: Tensor) -> dict[str, Tensor]:
        """L1, MSE and, where images are large enough for it, LPIPS."""
        terms = {"l1": (y_BCHW - x_BCHW).abs().mean(), "mse": (y_BCHW - x_BCHW).square().mean()}
        if self.lpips is not None and self.config.lpips and min(x_BCHW.shape[2:]) >= self.lpips.min_side:
            terms["lpips"] = self.lpips(y_BCHW, x_BCHW).mean()
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of what `distance` gives."""
        loss = terms["l1"] + terms["mse"]
        return loss + self.config.lpips * terms["lpips"] if "lpips" in terms else loss

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        x = random_views(window_BCHW, config.crop, generator).contiguous(memory_format=torch.channels_last)
        z = self.model.encode(x).latent.float()
        y = self.model.decode(add_latent_noise(z, config.latent_noise)).sample.float()
        terms = self.distance(y, x)
        loss = self.total(terms)
        if config.smoothness:
            terms["roughness"] = roughness(standardise(z))
            loss = loss + config.smoothness * terms["roughness"]
        if config.equivariance:
            small = self.distance(self.model.decode(halve_latent(z)).sample.float(), halve_image(x))
            terms["equivariance"] = self.total(small)
            loss = loss + config.equivariance * terms["equivariance"]
        if self.companion is not None:
            terms["fooled"], terms["judged"] = hinge_losses(self.companion, y, x)
            loss = loss + config.discriminator * terms["fooled"] + terms["judged"]
        if config.unit:
            terms["unit"] = unit_penalty(z)
            loss = loss + config.unit * terms["unit"]
        return {"loss": loss, **terms}

    def parts(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder, *([self.lpips] if self.lpips is not None else [])]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean PSNR, SSIM and LPIPS of D(E(x)), and how rough the latents are: 1 minus neighbours' correlation."""
        device = next(self.model.parameters()).device
        rows: list[dict[str, Tensor]] = []
        latents: list[Tensor] = []
        for x in self.val.split(32):
            x = x.to(device)
            latents.append(self.model.encode(x).latent.float())
            rows.append(score(self.model.decode(latents[-1]).sample.clamp(-1, 1), x, self.lpips))
        figures = {name: torch.cat([row[name] for row in rows]).mean().item() for name in rows[0]}
        return figures | {"roughness": neighbour_roughness(torch.cat(latents).cpu()).mean().item()}


@torch.no_grad()
def latent_scale(model: Any, x_NCHW: Tensor, device: str | torch.device) -> float:
    """The scaling_factor that brings the latents of these photos to a mean square of 1; the model is on `device`."""
    z = torch.cat([model.encode(x.to(device)).latent.float().cpu() for x in x_NCHW.split(32)])
    return (1 / z.square().mean().sqrt()).item()
