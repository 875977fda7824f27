"""Flow-matching transformers, SD3 and SANA: velocities, of latents that LatentPrior makes variance-preserving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.condition import Family, NullCondition
from flashray.prior.folder import PipelineFolder
from flashray.prior.null_prompt import POOLED, PROMPT, condition_files, null_prompt
from flashray.prior.weights import read_json
from flashray.schedule import is_flow


class EmptyPromptAndPooled(NullCondition):
    """SD3's transformer attends jointly to image and prompt, and adds the pooled embedding to its time."""

    def arguments(self, constants: dict[str, Tensor]) -> dict[str, Any]:
        return {"encoder_hidden_states": constants[PROMPT], "pooled_projections": constants[POOLED]}


class EmptyPromptOfSana(NullCondition):
    """SANA's transformer attends to the prompt's tokens, padding left out, and scales its time."""

    def forward(self, z_BCHW: Tensor, timestep_B: Tensor) -> Any:
        return super().forward(z_BCHW, timestep_B * self.config.get("timestep_scale", 1.0))

    def arguments(self, constants: dict[str, Tensor]) -> dict[str, Any]:
        return {"encoder_hidden_states": constants[PROMPT]}


def _width(pipeline: PipelineFolder, key: str, default: int) -> int:
    width = pipeline.config.get(key, default)
    if not isinstance(width, int):
        raise ConfigError(f"prior {pipeline.source}: the denoiser's {key} is {width!r}; give an integer")
    return width


class _Flow(Family):
    """What the two kinds have in common: velocities, and an empty prompt."""

    def refuse(self, pipeline: PipelineFolder) -> None:
        if not is_flow(read_json(pipeline.scheduler)):
            raise ConfigError(
                f"prior {pipeline.source}: a {pipeline.denoiser_class} predicts velocities, and "
                f"{pipeline.scheduler.name} is not of flow matching; save it with FlowMatchEulerDiscreteScheduler"
            )
        if pipeline.config.get("guidance_embeds"):
            raise ConfigError(f"prior {pipeline.source}: a distilled model that takes a guidance scale is no prior")

    def files(self, pipeline: PipelineFolder) -> list[Path]:
        return condition_files(pipeline)


class SD3(_Flow):
    """A prompt and its pooled embedding."""

    name: ClassVar[str] = "SD3"
    classes: ClassVar[tuple[str, ...]] = ("SD3Transformer2DModel",)
    wrapper = EmptyPromptAndPooled

    def condition(self, pipeline: PipelineFolder) -> dict[str, Tensor]:
        prompt = _width(pipeline, "joint_attention_dim", 4096)
        pooled = _width(pipeline, "pooled_projection_dim", 2048)
        return null_prompt(pipeline, {PROMPT: prompt, POOLED: pooled})


class Sana(_Flow):
    """A prompt."""

    name: ClassVar[str] = "SANA"
    classes: ClassVar[tuple[str, ...]] = ("SanaTransformer2DModel",)
    wrapper = EmptyPromptOfSana

    def condition(self, pipeline: PipelineFolder) -> dict[str, Tensor]:
        return null_prompt(pipeline, {PROMPT: _width(pipeline, "caption_channels", 2304)})
