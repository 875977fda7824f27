"""Stable Diffusion 1.5, 2.1 and XL with the empty prompt, against diffusers' own models, sampler and pipelines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior import export_null_prompt, hash_weights, load_prior
from tests.support.models import SIDE, dc, edit_json, save_pipeline
from tests.support.prior_chains import (
    STEPS,
    Answer,
    compare,
    our_chain,
    our_schedule,
    restored,
    sampler_of,
    trained_encoder,
)
from tests.support.prior_layouts import (
    LAYOUTS,
    POOLED,
    TOKENS,
    WIDTH,
    edit_index,
    save_null_prompt,
    sdxl,
    stable_diffusion,
)
from tests.support.prior_text_encoders import save_clip

NULL = "null_prompt.safetensors"


def theirs_of(folder: Path) -> Answer:
    model = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    prompt = load_file(folder / NULL)["null_prompt"]
    return lambda z, t: model(z, t, encoder_hidden_states=prompt.repeat(len(z), 1, 1)).sample


def sdxl_of(folder: Path, prompt: Tensor, pooled: Tensor) -> Answer:
    model = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]])

    def answer(z: Tensor, t: Tensor) -> Tensor:
        added = {"text_embeds": pooled.repeat(len(z), 1), "time_ids": sizes.repeat(len(z), 1)}
        return model(z, t, encoder_hidden_states=prompt.repeat(len(z), 1, 1), added_cond_kwargs=added).sample

    return answer


@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Stable Diffusion 2.1"])
def test_a_step_and_a_chain_equal_diffusers(name: str, tmp_path: Path):
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    assert prior.prediction_type == ("v_prediction" if "2.1" in name else "epsilon")
    first, chain = compare(tmp_path, prior, theirs_of(tmp_path))
    assert first < 1e-6
    assert chain < 1e-5
    save_null_prompt(tmp_path, tokens=TOKENS + 1)  # the comparison has teeth: another prompt, another chain
    assert compare(tmp_path, prior, theirs_of(tmp_path))[1] > 1e-3


def test_xl_with_zeros_for_an_empty_prompt_needs_no_text_encoder(tmp_path: Path):
    prior = load_prior(str(sdxl(tmp_path)))
    answer = sdxl_of(tmp_path, torch.zeros(1, 77, WIDTH), torch.zeros(1, POOLED))
    first, chain = compare(tmp_path, prior, answer)
    assert first < 1e-6
    assert chain < 1e-5


def test_xl_with_a_prompt_of_its_own_equals_diffusers(tmp_path: Path):
    prior = load_prior(str(sdxl(tmp_path, zeros=False)))
    null = load_file(tmp_path / NULL)
    assert compare(tmp_path, prior, sdxl_of(tmp_path, null["null_prompt"], null["null_pooled"]))[1] < 1e-5


@pytest.mark.parametrize("name", ["Stable Diffusion 1.5", "Stable Diffusion 2.1", "Stable Diffusion XL"])
def test_a_severity_encoder_trains_and_a_flash_run_restores(name: str, tmp_path: Path):
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    encoder, losses = trained_encoder(prior)
    assert losses[-1] < losses[0]
    solved = restored(prior, encoder)
    assert solved.error is None
    assert 0 < solved.nfe < STEPS


def test_half_precision_weights_of_a_variant_open(tmp_path: Path):
    stable_diffusion(tmp_path)
    before = load_prior(str(tmp_path))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(
        {k: v.half() for k, v in load_file(weights).items()}, weights.with_name(weights.stem + ".fp16.safetensors")
    )
    assert load_prior(str(tmp_path)).sha256 == before.sha256  # full precision comes first, and it alone is hashed
    weights.unlink()
    after = load_prior(str(tmp_path))
    assert next(after.denoiser.parameters()).dtype == torch.float32
    assert after.sha256 != before.sha256
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    torch.testing.assert_close(after.epsilon(z, t), before.epsilon(z, t), rtol=0, atol=0.02)


@pytest.fixture
def with_encoder(tmp_path: Path) -> Path:
    stable_diffusion(tmp_path)
    (tmp_path / NULL).unlink()
    save_clip(tmp_path)
    return tmp_path


def whole_pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, vae=AutoencoderKL.from_pretrained(folder / "vae")
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_whole_sample_equals_the_pipelines_with_an_empty_prompt(with_encoder: Path):
    prior = load_prior(str(with_encoder))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = whole_pipeline(with_encoder)(
        "", guidance_scale=1.0, eta=0.0, num_inference_steps=STEPS, latents=noise, output_type="np"
    ).images
    last = our_chain(prior, our_schedule(prior, sampler_of(with_encoder)), noise)[-1]
    ours = (prior.decode(last) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shard", ["5GB", "1KB"], ids=["one file", "an index"])
def test_a_text_encoder_of_the_half_precision_variant_opens(shard: str, with_encoder: Path):
    from transformers import CLIPTextModel

    before = load_prior(str(with_encoder))
    folder = with_encoder / "text_encoder"
    encoder = CLIPTextModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    encoder.half().save_pretrained(folder, variant="fp16", max_shard_size=shard)
    assert all(".fp16" in path.name for path in folder.glob("model*"))
    after = load_prior(str(with_encoder))
    torch.testing.assert_close(after.denoiser.null_prompt, before.denoiser.null_prompt, rtol=0, atol=0.02)


def test_the_exported_prompt_is_the_encoders(with_encoder: Path, monkeypatch: pytest.MonkeyPatch):
    computed = load_prior(str(with_encoder))
    path = export_null_prompt(with_encoder)
    assert path == with_encoder / NULL
    monkeypatch.setitem(sys.modules, "transformers", None)  # not needed any more
    read = load_prior(str(with_encoder))
    assert torch.equal(read.denoiser.null_prompt, computed.denoiser.null_prompt)
    assert read.sha256 != computed.sha256  # other files were read
    with pytest.raises(ConfigError, match="is there already"):
        export_null_prompt(with_encoder)


def test_xl_computes_both_embeddings_where_it_was_not_trained_with_zeros(tmp_path: Path):
    sdxl(tmp_path, zeros=False)
    (tmp_path / NULL).unlink()
    save_clip(tmp_path, width=WIDTH - POOLED)
    save_clip(tmp_path, "_2", width=POOLED, projection=True)
    prior = load_prior(str(tmp_path))
    assert prior.denoiser.null_prompt.shape == (1, TOKENS, WIDTH)
    assert prior.denoiser.null_pooled.shape == (1, POOLED)
    assert set(load_file(export_null_prompt(tmp_path))) == {"null_prompt", "null_pooled"}


def test_the_hash_covers_the_text_encoder_where_it_is_read(with_encoder: Path):
    before = load_prior(str(with_encoder)).sha256
    assert before == hash_weights(with_encoder)
    edit_json(with_encoder / "text_encoder" / "config.json", layer_norm_eps=1e-4)
    changed = hash_weights(with_encoder)
    assert changed != before
    save_null_prompt(with_encoder)
    read = hash_weights(with_encoder)
    edit_json(with_encoder / "text_encoder" / "config.json", layer_norm_eps=1e-3)
    assert hash_weights(with_encoder) == read


def test_the_text_encoder_needs_transformers(with_encoder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the package transformers, .* write null_prompt\.safetensors"):
        load_prior(str(with_encoder))


def lacking_tensor(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.endswith("k_proj.weight")))
    save_file(tensors, path, metadata={"format": "pt"})


def nan_tensor(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, path, metadata={"format": "pt"})


ENCODER_DAMAGE = {
    "lacking": (lacking_tensor, r"text_encoder: the weights lack .*k_proj\.weight"),
    "nan": (nan_tensor, "text_encoder: 1 tensor .* hold NaN"),
    "no weights": (
        lambda folder: (folder / "text_encoder" / "model.safetensors").unlink(),
        "model.safetensors is missing",
    ),
    "no folder": (
        lambda folder: (folder / "text_encoder" / "config.json").unlink(),
        r"text_encoder/config\.json is missing, and null_prompt\.safetensors is not there either",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer" / "tokenizer_config.json").unlink(),
        r"tokenizer/tokenizer_config\.json is missing",
    ),
    "malformed": (
        lambda folder: (folder / "text_encoder" / "config.json").write_text("{"),
        "text_encoder/config.json: not a readable JSON file",
    ),
}


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder", "scheduler"])
def test_no_code_of_the_folder_runs(name: str, with_encoder: Path):
    """model_index.json can name a Python file beside a component."""
    (with_encoder / name / "own.py").write_text("raise SystemExit('ran')")
    edit_index(with_encoder, **{name: ["own", "CLIPTokenizer"]})
    library = "diffusers" if name == "scheduler" else "transformers"
    with pytest.raises(ConfigError, match=f"gives {name} as .*; a class of {library} is asked for"):
        load_prior(str(with_encoder))


@pytest.mark.parametrize("damage", ENCODER_DAMAGE)
def test_broken_text_encoders_are_refused_by_name(damage: str, with_encoder: Path):
    damaging, message = ENCODER_DAMAGE[damage]
    damaging(with_encoder)
    with pytest.raises(ConfigError, match=message):
        load_prior(str(with_encoder))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.zeros(1)}, "the tensor null_prompt is missing"),
        (
            {"null_prompt": torch.zeros(1, 7, WIDTH + 1)},
            rf"\[1, 7, {WIDTH + 1}\], and the denoiser takes \[1, tokens, 12\]",
        ),
        ({"null_prompt": torch.zeros(7, WIDTH)}, r"\[7, 12\], and the denoiser takes \[1, tokens, 12\]"),
        ({"null_prompt": torch.full((1, 7, WIDTH), torch.nan)}, "NaN or infinite"),
    ],
)
def test_wrong_null_prompts_are_refused(tensors: dict[str, Tensor], message: str, tmp_path: Path):
    save_file(tensors, stable_diffusion(tmp_path) / NULL)
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path))


def test_without_prompt_and_text_encoder_nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (stable_diffusion(tmp_path) / NULL).unlink()
    monkeypatch.setattr("flashray.prior.loading.load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=r"neither null_prompt\.safetensors nor a text encoder in model_index\.json"):
        load_prior(str(tmp_path))


UNETS: dict[str, tuple[dict[str, Any], str]] = {
    "inpainting": ({"in_channels": 9}, "takes 9 channels, and the latents have 4"),
    "upscaler": ({"class_embed_type": "timestep"}, r"cannot be left out \(class_embed_type is 'timestep'\)"),
    "text and image": ({"addition_embed_type": "text_image"}, r"cannot be left out \(addition_embed_type is"),
    "widths": ({"cross_attention_dim": [8, 12]}, "one width for all blocks"),
}


@pytest.mark.parametrize("name", UNETS)
def test_unets_that_ask_for_more_are_refused(name: str, tmp_path: Path):
    settings, message = UNETS[name]
    edit_json(stable_diffusion(tmp_path) / "unet" / "config.json", **settings)
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path))


def test_the_refiner_is_refused(tmp_path: Path):
    edit_index(sdxl(tmp_path), requires_aesthetics_score=True)
    with pytest.raises(ConfigError, match="refiner"):
        load_prior(str(tmp_path))


def test_what_takes_no_prompt_has_none_to_export(tmp_path: Path):
    with pytest.raises(ConfigError, match="this LDM needs no text encoder"):
        export_null_prompt(save_pipeline(tmp_path, dc()))
