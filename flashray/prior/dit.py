"""DiT: a class-conditional transformer, here with the class that stands for none."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.condition import Family, NullCondition
from flashray.prior.folder import PipelineFolder


class DiT(Family):
    """The transformer takes a class: the one after the last, which it was trained to see where a class was left out."""

    name: ClassVar[str] = "DiT"
    classes: ClassVar[tuple[str, ...]] = ("DiTTransformer2DModel",)
    wrapper = NullCondition

    def refuse(self, pipeline: PipelineFolder) -> None:
        classes = pipeline.config.get("num_embeds_ada_norm", 1000)
        if not isinstance(classes, int) or classes < 1:
            raise ConfigError(
                f"prior {pipeline.source}: the denoiser's num_embeds_ada_norm is {classes!r}; give how many classes"
            )

    def condition(self, pipeline: PipelineFolder) -> dict[str, Tensor]:
        return {"class_labels": torch.tensor([pipeline.config.get("num_embeds_ada_norm", 1000)])}
