"""Tiny pipelines with random weights in the layouts of other people's checkpoints, saved by diffusers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DDIMPipeline,
    DDIMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import save_file
from torch import Tensor

from tests.support.models import SIDE, dc, kl, save_pipeline, unet, vq

LATENT = SIDE // 4
WIDTH, POOLED, TOKENS = 12, 10, 7


def lively(model: Any) -> Any:
    """The model with weights large enough that its answers vary as a trained one's do; fresh ones may be all zero."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.8 / value[0].numel() ** 0.5, generator=generator)
    return model.eval()


def ddim(**settings: Any) -> DDIMScheduler:
    """Stable Diffusion's noise, in the sampler that the tests compare with."""
    config: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    return DDIMScheduler(**(config | settings))


def save_components(folder: Path, kind: str, **components: Any) -> Path:
    """Each component in its folder, and the model_index.json of a pipeline of this kind."""
    index: dict[str, Any] = {"_class_name": kind}
    for name, component in components.items():
        component.save_pretrained(folder / name, safe_serialization=True)
        index[name] = ["diffusers", type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def edit_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def save_null_prompt(folder: Path, width: int = WIDTH, pooled: int = 0, tokens: int = TOKENS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    tensors = {"null_prompt": torch.randn(1, tokens, width, generator=generator)}
    if pooled:
        tensors["null_pooled"] = torch.randn(1, pooled, generator=generator)
    save_file(tensors, folder / "null_prompt.safetensors")
    return tensors


def conditional_unet(**settings: Any) -> UNet2DConditionModel:
    torch.manual_seed(6)
    config: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
    }
    return lively(UNet2DConditionModel(**(config | settings)))


def stable_diffusion(folder: Path, prediction_type: str = "epsilon", **settings: Any) -> Path:
    """SD 1.5, or 2.1 with `v_prediction`."""
    scheduler = ddim(prediction_type=prediction_type)
    save_components(folder, "StableDiffusionPipeline", vae=kl(), unet=conditional_unet(**settings), scheduler=scheduler)
    save_null_prompt(folder)
    return folder


def sdxl(folder: Path, zeros: bool = True) -> Path:
    """SDXL's base, which was trained with zeros for an empty prompt."""
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + POOLED,
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
    }
    save_components(folder, "StableDiffusionXLPipeline", vae=kl(), unet=conditional_unet(**added), scheduler=ddim())
    edit_index(folder, force_zeros_for_empty_prompt=zeros)
    if not zeros:
        save_null_prompt(folder, pooled=POOLED)
    return folder


def dit(folder: Path) -> Path:
    """DiT with ten classes and learnt variances."""
    torch.manual_seed(7)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=LATENT,
        patch_size=2,
        num_embeds_ada_norm=10,
        norm_num_groups=4,
    )
    noise = ddim(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    return save_components(folder, "DiTPipeline", vae=kl(), transformer=lively(transformer), scheduler=noise)


def sd3(folder: Path) -> Path:
    """SD3: 16 latent channels, scaled and shifted."""
    torch.manual_seed(7)
    transformer = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=POOLED,
        pos_embed_max_size=LATENT,
    )
    vae = kl(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06)
    noise = FlowMatchEulerDiscreteScheduler(shift=3.0)
    save_components(folder, "StableDiffusion3Pipeline", vae=vae, transformer=lively(transformer), scheduler=noise)
    save_null_prompt(folder, pooled=POOLED)
    return folder


def deep(**settings: Any) -> AutoencoderDC:
    """SANA's autoencoder: its last blocks attend over the image."""
    blocks = {
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_qkv_multiscales": ((), (), (5,)),
        "decoder_qkv_multiscales": ((), (), (5,)),
        "attention_head_dim": 8,
    }
    return dc(**(blocks | settings))


def sana(folder: Path) -> Path:
    """SANA: a DC autoencoder, linear attention, and a DPM solver's config with flow sigmas."""
    torch.manual_seed(7)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=LATENT,
        patch_size=1,
    )
    noise = FlowMatchEulerDiscreteScheduler(shift=3.0)
    save_components(folder, "SanaPipeline", vae=deep(), transformer=lively(transformer), scheduler=noise)
    dpm = {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dpm))
    save_null_prompt(folder)
    return folder


def ldm(autoencoder: Callable[..., Any]) -> Callable[[Path], Path]:
    """LDM with an unconditional UNet and one of the autoencoders."""

    def save(folder: Path) -> Path:
        save_pipeline(folder, autoencoder(), beta_start=0.0015, beta_end=0.0195)
        lively(unet()).save_pretrained(folder / "unet", safe_serialization=True)
        return folder

    return save


def ldm_vq_f8(folder: Path) -> Path:
    """LDM with VQ-f8: one level more than f4."""
    levels = ("DownEncoderBlock2D",) * 4
    ups = ("UpDecoderBlock2D",) * 4
    autoencoder = vq(block_out_channels=(8, 8, 8, 16), down_block_types=levels, up_block_types=ups)
    save_pipeline(folder, autoencoder)
    lively(unet()).save_pretrained(folder / "unet", safe_serialization=True)
    return folder


def ddpm(folder: Path) -> Path:
    """DDPM in pixels."""
    torch.manual_seed(5)
    denoiser = UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    noise = ddim(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    DDIMPipeline(unet=lively(denoiser), scheduler=noise).save_pretrained(folder)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "LDM, VQ-f4": ldm(vq),
    "LDM, VQ-f8": ldm_vq_f8,
    "LDM, KL": ldm(kl),
    "LDM, DC": ldm(dc),
    "DDPM, pixels": ddpm,
    "Stable Diffusion 1.5": stable_diffusion,
    "Stable Diffusion 2.1": lambda folder: stable_diffusion(folder, "v_prediction", use_linear_projection=True),
    "Stable Diffusion XL": sdxl,
    "DiT": dit,
    "SD3": sd3,
    "SANA": sana,
}
