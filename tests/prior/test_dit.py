"""DiT, against diffusers' own transformer, sampler and pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from flashray.errors import ConfigError
from flashray.prior import load_prior
from tests.support.models import edit_json
from tests.support.prior_chains import STEPS, compare, our_chain, our_schedule, restored, sampler_of, trained_encoder
from tests.support.prior_layouts import dit


def test_a_step_and_a_chain_equal_diffusers(tmp_path: Path):
    """With the class that stands for none: ten classes, so its number is 10."""
    prior = load_prior(str(dit(tmp_path)))
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    none = torch.tensor([10, 10])
    first, chain = compare(tmp_path, prior, lambda z, t: theirs(z, timestep=t, class_labels=none).sample[:, :4])
    assert first < 1e-6
    assert chain < 1e-5
    with torch.no_grad():  # the comparison has teeth: another class gives another chain
        _, wrong = compare(tmp_path, prior, lambda z, t: theirs(z, timestep=t, class_labels=none - 1).sample[:, :4])
    assert wrong > 1e-3


def test_a_whole_sample_equals_the_pipelines(tmp_path: Path):
    prior = load_prior(str(dit(tmp_path)))
    parts = DiTTransformer2DModel.from_pretrained(tmp_path / "transformer").eval()
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae").eval()
    pipeline = DiTPipeline(parts, vae, sampler_of(tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        class_labels=[10],
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    ).images
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    last = our_chain(prior, our_schedule(prior, pipeline.scheduler), noise)[-1]
    ours = (prior.decode(last) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_severity_encoder_trains_and_a_flash_run_restores(tmp_path: Path):
    prior = load_prior(str(dit(tmp_path)))
    encoder, losses = trained_encoder(prior)
    assert losses[-1] < losses[0]
    solved = restored(prior, encoder)
    assert solved.error is None
    assert 0 < solved.nfe < STEPS


def test_pipelines_saved_before_the_class_had_its_name_open(tmp_path: Path):
    before = load_prior(str(dit(tmp_path)))
    edit_json(tmp_path / "transformer" / "config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    after = load_prior(str(tmp_path))
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    assert torch.equal(before.epsilon(z, t), after.epsilon(z, t))


@pytest.mark.parametrize("classes", [0, "ten"])
def test_a_wrong_number_of_classes_is_refused(classes: object, tmp_path: Path):
    edit_json(dit(tmp_path) / "transformer" / "config.json", num_embeds_ada_norm=classes)
    with pytest.raises(ConfigError, match="num_embeds_ada_norm is"):
        load_prior(str(tmp_path))
