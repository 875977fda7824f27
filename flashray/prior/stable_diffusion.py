"""Stable Diffusion 1.x and 2.x: a UNet that attends to a prompt, here the empty one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.condition import Family, NullCondition
from flashray.prior.folder import PipelineFolder
from flashray.prior.null_prompt import PROMPT, condition_files, null_prompt


class EmptyPrompt(NullCondition):
    """The UNet's cross-attention looks at the empty prompt's embedding."""

    def arguments(self, constants: dict[str, Tensor]) -> dict[str, Any]:
        return {"encoder_hidden_states": constants[PROMPT]}


CONDITIONS = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")


def refuse_conditions(pipeline: PipelineFolder, without: tuple[str, ...]) -> None:
    """Raise ConfigError where one of these keys of the UNet's config asks for a condition."""
    for key in without:
        if pipeline.config.get(key) is not None:
            raise ConfigError(
                f"prior {pipeline.source}: the denoiser asks for a condition that cannot be left out "
                f"({key} is {pipeline.config[key]!r})"
            )


def width_of_prompt(pipeline: PipelineFolder) -> int:
    """The width of the embeddings that the UNet attends to; ConfigError if its blocks ask for different ones."""
    width = pipeline.config.get("cross_attention_dim", 1280)
    widths = width if isinstance(width, list) else [width]
    if not widths or not all(isinstance(one, int) and one == widths[0] for one in widths):
        raise ConfigError(f"prior {pipeline.source}: cross_attention_dim is {width!r}; give one width for all blocks")
    return int(widths[0])


class StableDiffusion(Family):
    """The UNet attends to the empty prompt, and takes no other condition."""

    name: ClassVar[str] = "Stable Diffusion"
    classes: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    wrapper = EmptyPrompt

    def fits(self, pipeline: PipelineFolder) -> bool:
        return pipeline.config.get("addition_embed_type") != "text_time"

    def refuse(self, pipeline: PipelineFolder) -> None:
        refuse_conditions(pipeline, (*CONDITIONS, "addition_embed_type"))

    def condition(self, pipeline: PipelineFolder) -> dict[str, Tensor]:
        return null_prompt(pipeline, {PROMPT: width_of_prompt(pipeline)})

    def files(self, pipeline: PipelineFolder) -> list[Path]:
        return condition_files(pipeline)
