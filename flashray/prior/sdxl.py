"""Stable Diffusion XL: the empty prompt, its pooled embedding, and the sizes of an uncropped image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior.condition import Family, NullCondition
from flashray.prior.folder import PipelineFolder, find_autoencoder
from flashray.prior.null_prompt import POOLED, PROMPT, condition_files, null_prompt
from flashray.prior.stable_diffusion import CONDITIONS, refuse_conditions, width_of_prompt
from flashray.prior.weights import read_json

_SIZES = "time_ids"
_TOKENS = 77  # of CLIP


class EmptyPromptAndSizes(NullCondition):
    """The UNet attends to the prompt, and adds the pooled embedding and the six sizes to its time."""

    def arguments(self, constants: dict[str, Tensor]) -> dict[str, Any]:
        added = {"text_embeds": constants[POOLED], "time_ids": constants[_SIZES]}
        return {"encoder_hidden_states": constants[PROMPT], "added_cond_kwargs": added}


def _pooled_width(pipeline: PipelineFolder) -> int:
    """What is left of the added embedding beside six sizes."""
    whole = pipeline.config.get("projection_class_embeddings_input_dim")
    one = pipeline.config.get("addition_time_embed_dim")
    if not isinstance(whole, int) or not isinstance(one, int):
        raise ConfigError(
            f"prior {pipeline.source}: the denoiser's projection_class_embeddings_input_dim and "
            f"addition_time_embed_dim are {whole!r} and {one!r}; give integers"
        )
    return whole - 6 * one


def _zeros(pipeline: PipelineFolder) -> bool:
    """Whether the model was trained with zeros for an empty prompt: then no text encoder is needed."""
    return bool(pipeline.index.get("force_zeros_for_empty_prompt"))


def _side_in_pixels(pipeline: PipelineFolder) -> float:
    autoencoder = find_autoencoder(pipeline.root, pipeline.index)
    blocks = read_json(autoencoder / "config.json").get("block_out_channels") if autoencoder else None
    factor = 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 1
    side = pipeline.config.get("sample_size")
    return float(side * factor) if isinstance(side, int) else 0.0


class SDXL(Family):
    """The UNet takes a prompt, its pooled embedding and six sizes."""

    name: ClassVar[str] = "Stable Diffusion XL"
    classes: ClassVar[tuple[str, ...]] = ("UNet2DConditionModel",)
    wrapper = EmptyPromptAndSizes

    def fits(self, pipeline: PipelineFolder) -> bool:
        return pipeline.config.get("addition_embed_type") == "text_time"

    def refuse(self, pipeline: PipelineFolder) -> None:
        refuse_conditions(pipeline, CONDITIONS)
        if pipeline.index.get("requires_aesthetics_score") or _pooled_width(pipeline) <= 0:
            raise ConfigError(
                f"prior {pipeline.source}: SDXL's refiner is no prior by itself; name the base model's folder"
            )

    def condition(self, pipeline: PipelineFolder) -> dict[str, Tensor]:
        width, pooled = width_of_prompt(pipeline), _pooled_width(pipeline)
        if _zeros(pipeline):
            constants = {PROMPT: torch.zeros(1, _TOKENS, width), POOLED: torch.zeros(1, pooled)}
        else:
            constants = null_prompt(pipeline, {PROMPT: width, POOLED: pooled})
        side = _side_in_pixels(pipeline)
        # the original size, the crop's corner, the target size
        return constants | {_SIZES: torch.tensor([[side, side, 0.0, 0.0, side, side]])}

    def files(self, pipeline: PipelineFolder) -> list[Path]:
        return [] if _zeros(pipeline) else condition_files(pipeline)
