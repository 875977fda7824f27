"""Unconditional UNets: latent diffusion with VQ, KL or DC autoencoders, and DDPM in pixels."""

from __future__ import annotations

from typing import ClassVar

from flashray.errors import ConfigError
from flashray.prior.condition import Family
from flashray.prior.folder import PipelineFolder


class LDM(Family):
    """The denoiser is a function of (z, t) as it is."""

    name: ClassVar[str] = "LDM"
    classes: ClassVar[tuple[str, ...]] = ("UNet2DModel",)

    def refuse(self, pipeline: PipelineFolder) -> None:
        for key in ("class_embed_type", "num_class_embeds"):
            if pipeline.config.get(key) is not None:
                raise ConfigError(
                    f"prior {pipeline.source}: the denoiser is class-conditional ({key} is {pipeline.config[key]!r}) "
                    "and has no class that stands for none; give an unconditional one"
                )
