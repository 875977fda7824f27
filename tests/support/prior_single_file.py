"""A Stable Diffusion pipeline's weights in one file, by the names of the original code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from flashray.prior.weights import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(folder: Path, path: Path) -> Path:
    """The weights of `vae` and `unet` of a pipeline's folder in one file."""
    vae, unet = (read_json(folder / name / "config.json") for name in ("vae", "unet"))
    levels, layers = len(vae["block_out_channels"]), unet["layers_per_block"]
    tensors: dict[str, Tensor] = {}
    for name, value in load_file(folder / "unet" / WEIGHTS).items():
        tensors[f"model.diffusion_model.{_of_unet(name, layers, unet)}"] = value
    for name, value in load_file(folder / "vae" / WEIGHTS).items():
        square = "attentions" in name and name.endswith("weight") and value.ndim == 2
        tensors[f"first_stage_model.{_of_vae(name, levels)}"] = value[..., None, None] if square else value
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = value.new_zeros(3)
    save_file(tensors, path)
    return path


def _of_unet(name: str, layers: int, config: dict[str, Any]) -> str:
    for new, old in _UNET.items():
        if name.startswith(f"{new}."):
            return name.replace(new, old)
    where, _, rest = name.partition(".resnets.")
    if rest:
        number, _, part = rest.partition(".")
        part = next(part.replace(new, old) for new, old in _RESNET.items() if part.startswith(f"{new}."))
        return f"{_place(where, int(number), layers, 0)}.{part}"
    where, _, rest = name.partition(".attentions.")
    if rest:
        number, _, part = rest.partition(".")
        return f"{_place(where, int(number), layers, 1)}.{part}"
    found = re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name)
    if found:
        return f"input_blocks.{(layers + 1) * (int(found[1]) + 1)}.0.op.{found[2]}"
    found = re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", name)
    assert found, name
    attends = "CrossAttn" in config["up_block_types"][int(found[1])]
    return f"output_blocks.{(layers + 1) * int(found[1]) + layers}.{2 if attends else 1}.{found[2]}"


def _place(where: str, number: int, layers: int, kind: int) -> str:
    """Where a resnet (kind 0) or attention (1) of a block stands."""
    if where == "mid_block":
        return f"middle_block.{1 if kind else 2 * number}"
    side, block = where.split(".")
    if side == "down_blocks":
        return f"input_blocks.{(layers + 1) * int(block) + number + 1}.{kind}"
    return f"output_blocks.{(layers + 1) * int(block) + number}.{kind}"


def _of_vae(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    found = re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", name)
    if found:
        return f"{found[1]}mid.attn_1.{_ATTENTION[found[2]]}.{found[3]}"
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
