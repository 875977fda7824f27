"""Latent diffusion with unconditional UNets, against diffusers' own models, sampler and pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, LDMPipeline, UNet2DModel, VQModel
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior import load_prior
from tests.support.models import edit_json, save_pipeline, vq
from tests.support.prior_chains import (
    STEPS,
    compare,
    our_chain,
    our_schedule,
    restored,
    sampler_of,
    start,
    trained_encoder,
)
from tests.support.prior_layouts import LAYOUTS

KINDS = [name for name in LAYOUTS if name.startswith("LDM")]


@pytest.fixture(params=[*KINDS, "DDPM, pixels"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_step_and_a_chain_equal_diffusers(kind: str, tmp_path: Path):
    prior = load_prior(str(LAYOUTS[kind](tmp_path)))
    theirs = UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    first, chain = compare(tmp_path, prior, lambda z, t: theirs(z, t).sample)
    assert first < 1e-6
    assert chain < 1e-5


@pytest.mark.parametrize("name", ["LDM, VQ-f4", "LDM, VQ-f8"])
def test_a_whole_sample_equals_the_pipelines(name: str, tmp_path: Path):
    """From the pipeline's own noise to its image, through the quantiser."""
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    pipeline = LDMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        num_inference_steps=STEPS, eta=0.0, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    last = our_chain(prior, our_schedule(prior, pipeline.scheduler), noise)[-1]
    ours = (prior.decode(last) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_whole_sample_in_pixels_equals_the_pipelines(tmp_path: Path):
    prior = load_prior(str(LAYOUTS["DDPM, pixels"](tmp_path)))
    pipeline = DDIMPipeline(UNet2DModel.from_pretrained(tmp_path / "unet").eval(), sampler_of(tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        num_inference_steps=STEPS, eta=0.0, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    last = our_chain(prior, our_schedule(prior, pipeline.scheduler), noise)[-1]
    np.testing.assert_allclose((last / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_severity_encoder_trains_and_a_flash_run_restores(name: str, tmp_path: Path):
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    encoder, losses = trained_encoder(prior)
    assert losses[-1] < losses[0]
    solved = restored(prior, encoder)
    assert solved.error is None
    assert solved.image is not None
    assert solved.image.shape == (3, prior.sample_size, prior.sample_size)
    assert 0 < solved.nfe < STEPS


@pytest.mark.parametrize(
    ("name", "whole"),
    [("LDM, VQ-f4", True), ("LDM, KL", True), ("LDM, DC", False), ("DDPM, pixels", False), ("SANA", True)],
)
def test_autoencoders_that_look_over_the_whole_image_say_so(name: str, whole: bool, tmp_path: Path):
    """And it is true: the middle of an image's latents changes, or not, with a far corner of the image."""
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    assert prior.normalises_over_image is whole
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = x.clone()
    other[..., -8:, -8:] = 1.0

    def corner(image: Tensor) -> Tensor:
        return prior.encode(image)[..., :2, :2]

    assert torch.equal(corner(x), corner(other)) is not whole


def test_latents_before_the_quantiser_are_encoded_and_quantised_ones_decoded(tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, vq())))
    theirs = VQModel.from_pretrained(tmp_path / "vqvae").eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scale = theirs.config.scaling_factor
    torch.testing.assert_close(prior.encode(x), theirs.encode(x).latents * scale)
    z = start(prior)
    torch.testing.assert_close(prior.decode(z), theirs.decode(z / scale).sample)


@pytest.mark.parametrize("setting", [{"num_class_embeds": 10}, {"class_embed_type": "timestep"}])
def test_a_class_conditional_unet_is_refused(setting: dict, tmp_path: Path):
    edit_json(LAYOUTS["LDM, KL"](tmp_path) / "unet" / "config.json", **setting)
    with pytest.raises(ConfigError, match=f"class-conditional \\({next(iter(setting))} is"):
        load_prior(str(tmp_path))
