"""Flow-matching transformers as variance-preserving priors, against diffusers' own models and Euler sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashray.errors import ConfigError
from flashray.prior import LatentPrior, export_null_prompt, load_prior
from flashray.prior.flow import EmptyPromptOfSana
from flashray.sampling import sample
from flashray.schedule import FlowSchedule
from flashray.solvers import SOLVERS
from tests.support.models import edit_json
from tests.support.prior_chains import STEPS, Answer, compare, our_step, restored, start, trained_encoder
from tests.support.prior_layouts import POOLED, TOKENS, WIDTH, edit_index, sana, sd3
from tests.support.prior_text_encoders import save_clip, save_gemma, save_t5

NULL = "null_prompt.safetensors"


def sd3_of_diffusers(folder: Path) -> Answer:
    model = SD3Transformer2DModel.from_pretrained(folder / "transformer").eval()
    null = load_file(folder / NULL)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        prompt, pooled = null["null_prompt"].repeat(len(x), 1, 1), null["null_pooled"].repeat(len(x), 1)
        return model(x, encoder_hidden_states=prompt, pooled_projections=pooled, timestep=t).sample

    return answer


def sana_of_diffusers(folder: Path) -> Answer:
    """With padding and its mask, as the pipeline calls it."""
    model = SanaTransformer2DModel.from_pretrained(folder / "transformer").eval()
    null = load_file(folder / NULL)["null_prompt"]
    padded = torch.cat([null, torch.full((1, 4, null.shape[2]), 3.0)], dim=1)
    mask = torch.cat([torch.ones(1, null.shape[1]), torch.zeros(1, 4)], dim=1)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        repeated = padded.repeat(len(x), 1, 1)
        return model(
            x, encoder_hidden_states=repeated, encoder_attention_mask=mask.repeat(len(x), 1), timestep=t
        ).sample

    return answer


FLOWS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Answer]]] = {
    "SD3": (sd3, sd3_of_diffusers),
    "SANA": (sana, sana_of_diffusers),
}


@pytest.fixture(params=FLOWS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_step_and_a_chain_equal_diffusers_euler(name: str, tmp_path: Path):
    """From t = 1, where ᾱ is 0."""
    save, theirs = FLOWS[name]
    prior = load_prior(str(save(tmp_path)))
    first, chain = compare(tmp_path, prior, theirs(tmp_path))
    assert first < 1e-6
    assert chain < 1e-5


def test_the_estimate_and_the_noise_are_those_of_the_velocity(tmp_path: Path):
    prior = load_prior(str(sd3(tmp_path))).double()
    answer = sd3_of_diffusers(tmp_path)
    schedule = prior.schedule
    index = torch.tensor([0, 300, 900, 999])
    time = schedule.timesteps[index].double() / 1000
    z = start(prior, 4).double()
    t = time[:, None, None, None]
    x = z * ((1 - t) ** 2 + t**2).sqrt()
    velocity = torch.cat(
        [answer(x[b : b + 1].float(), schedule.timesteps[index][b : b + 1]) for b in range(4)]
    ).double()
    z0, epsilon = prior.predict(z, schedule.timesteps[index], schedule.alphas_cumprod[index])
    torch.testing.assert_close(z0, x - t * velocity, rtol=0, atol=1e-4)
    torch.testing.assert_close(epsilon, x + (1 - t) * velocity, rtol=0, atol=1e-4)
    torch.testing.assert_close(prior.epsilon(z, schedule.timesteps[index]), epsilon)
    # z = √ᾱ ẑ0 + √(1-ᾱ) ε, as for every variance-preserving prior
    alpha = schedule.alphas_cumprod[index][:, None, None, None]
    torch.testing.assert_close(alpha.sqrt() * z0 + (1 - alpha).sqrt() * epsilon, z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_chain_from_pure_noise_is_finite(eta: float, name: str, tmp_path: Path):
    prior = load_prior(str(FLOWS[name][0](tmp_path)))
    shape = tuple(start(prior).shape[1:])
    z = sample(prior, shape, prior.schedule.respaced(STEPS), torch.arange(3), eta)
    assert torch.isfinite(z).all()


def test_a_severity_encoder_trains_and_a_flash_run_restores(name: str, tmp_path: Path):
    prior = load_prior(str(FLOWS[name][0](tmp_path)))
    encoder, losses = trained_encoder(prior)
    assert losses[-1] < losses[0]
    solved = restored(prior, encoder)
    assert solved.error is None
    assert 0 < solved.nfe < STEPS


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_takes_a_full_chain_from_pure_noise(solver: str, tmp_path: Path):
    """Where ᾱ is 0 no rule divides by it."""
    prior = load_prior(str(sd3(tmp_path)))
    settings = {"iterations": 2} if solver in ("resample", "proximal") else {}
    solved = restored(prior, trained_encoder(prior, 1)[0], solver, mode="full", **settings)
    assert solved.error is None
    assert solved.nfe == STEPS


def test_a_scaled_time_is_scaled(tmp_path: Path):
    prior = load_prior(str(sana(tmp_path)))
    plain = EmptyPromptOfSana(prior.denoiser.denoiser, null_prompt=prior.denoiser.null_prompt)
    z, t = start(prior), torch.tensor([400.0, 800.0])
    expected = plain(z, t * 0.5).sample
    edit_json(tmp_path / "transformer" / "config.json", timestep_scale=0.5)
    torch.testing.assert_close(load_prior(str(tmp_path)).denoiser(z, t).sample, expected)


def test_one_step_leads_from_noise_to_the_estimate(tmp_path: Path):
    prior = load_prior(str(sd3(tmp_path)))
    z = start(prior)
    schedule = prior.schedule.respaced(1)
    z0, _ = prior.predict(z, schedule.timesteps.expand(2), schedule.alphas_cumprod.float().expand(2))
    torch.testing.assert_close(our_step(prior, schedule, z, 0), z0)


def test_the_schedule_is_diffusers_own(tmp_path: Path):
    for shift in (1.0, 3.0):
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
        ours = FlowSchedule.from_scheduler_config(dict(theirs.config))
        torch.testing.assert_close(ours.timesteps.flip(0), theirs.timesteps)
        theirs.set_timesteps(STEPS)
        torch.testing.assert_close(ours.respaced(STEPS).timesteps.flip(0), theirs.timesteps)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not a flow": (
        lambda folder: edit_json(
            folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", shift=None
        ),
        "predicts velocities, and scheduler_config.json is not of flow matching",
    ),
    "dynamic": (
        lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True),
        "use_dynamic_shifting is not supported",
    ),
    "shift": (
        lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", shift=-1.0),
        "shift is -1; give a number above 0",
    ),
    "pooled": (
        lambda folder: save_file({"null_prompt": torch.zeros(1, 7, 12)}, folder / NULL),
        "the tensor null_pooled is missing",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_flows_are_refused_by_name(damage: str, tmp_path: Path):
    damaging, message = BROKEN[damage]
    damaging(sd3(tmp_path))
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path))


def test_distilled_models_are_refused(tmp_path: Path):
    edit_json(sana(tmp_path) / "transformer" / "config.json", guidance_embeds=True)
    with pytest.raises(ConfigError, match="guidance scale"):
        load_prior(str(tmp_path))


def test_a_flow_needs_its_velocity_named():
    with pytest.raises(ConfigError, match="prediction_type 'flow' is not known"):
        LatentPrior(
            torch.nn.Identity(), torch.nn.Identity(), FlowSchedule.from_scheduler_config({}), 8, 1.0, 0.0, "flow"
        )


@pytest.mark.parametrize("t5", [True, False])
def test_sd3_computes_the_empty_prompt_with_and_without_its_largest_encoder(t5: bool, tmp_path: Path):
    """Users leave T5 out for its size: zeros stand in for it, as in the pipeline."""
    sd3(tmp_path)
    (tmp_path / NULL).unlink()
    save_clip(tmp_path, width=4, projection=True)
    save_clip(tmp_path, "_2", width=POOLED - 4, projection=True)
    edit_index(tmp_path, text_encoder_3=[None, None], tokenizer_3=[None, None])
    if t5:
        save_t5(tmp_path, "_3")
    prompt = load_prior(str(tmp_path)).denoiser.null_prompt
    assert prompt.shape == (1, TOKENS + 256, WIDTH)
    assert bool(prompt[:, TOKENS:].abs().sum() > 0) is t5
    assert torch.equal(load_file(export_null_prompt(tmp_path))["null_prompt"], prompt)
    assert torch.equal(load_prior(str(tmp_path)).denoiser.null_prompt, prompt)


def test_sana_computes_the_empty_prompt_without_its_padding(tmp_path: Path):
    sana(tmp_path)
    (tmp_path / NULL).unlink()
    save_gemma(tmp_path)
    prompt = load_prior(str(tmp_path)).denoiser.null_prompt
    assert prompt.shape == (1, 1, WIDTH)  # the token that begins every text
    assert prompt.abs().sum() > 0
    assert torch.equal(load_file(export_null_prompt(tmp_path))["null_prompt"], prompt)
