from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from flashray.errors import ConfigError
from flashray.recipe import SolverConfig
from flashray.schedule import FlowSchedule, NoiseSchedule, predict_z0
from flashray.solvers.solver import Step, reverse_step

LDM = {"num_train_timesteps": 1000, "beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
CONFIGS = {
    "defaults": {},
    "linear": {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "ldm": LDM,
    "cosine": {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"},
    "short": {"num_train_timesteps": 37, "beta_start": 0.01, "beta_end": 0.5, "beta_schedule": "scaled_linear"},
    "betas": {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.4]},
}


def ldm() -> NoiseSchedule:
    return NoiseSchedule.from_scheduler_config(LDM)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_diffusers_config_is_read_as_diffusers_reads_it(name: str, scheduler: type):
    theirs = scheduler(**CONFIGS[name])
    ours = NoiseSchedule.from_scheduler_config(dict(theirs.config))
    assert torch.equal(ours.timesteps, torch.arange(len(theirs.betas)))
    # diffusers multiplies a thousand float32 factors
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-7)
    exact = torch.cumprod(1 - theirs.betas.double(), 0)
    torch.testing.assert_close(ours.alphas_cumprod, exact, rtol=5e-5, atol=1e-8)


def test_config_may_say_less_than_diffusers_own_defaults():
    assert torch.equal(
        NoiseSchedule.from_scheduler_config({}).alphas_cumprod,
        NoiseSchedule.from_scheduler_config(CONFIGS["linear"]).alphas_cumprod,
    )


@pytest.mark.parametrize(
    "config", [{"beta_schedule": "sigmoid"}, {"beta_schedule": None}, LDM | {"rescale_betas_zero_snr": True}]
)
def test_unknown_schedules_are_config_errors(config: dict):
    with pytest.raises(ConfigError, match=r"scheduler: (beta_schedule|rescale_betas_zero_snr)"):
        NoiseSchedule.from_scheduler_config(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_signal_falls_and_ends_are_the_data(name: str):
    schedule = NoiseSchedule.from_scheduler_config(CONFIGS[name])
    assert ((schedule.alphas_cumprod > 0) & (schedule.alphas_cumprod < 1)).all()
    assert (schedule.snr().diff() < 0).all()
    assert schedule.alphas_cumprod_prev[0] == 1
    assert torch.equal(schedule.alphas_cumprod_prev[1:], schedule.alphas_cumprod[:-1])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", ["ldm", "short"])
def test_every_respacing_has_its_length_ascending_unique_steps_and_consistent_alphas(name: str, spacing: Any):
    schedule = NoiseSchedule.from_scheduler_config(CONFIGS[name])
    for steps in range(1, len(schedule) + 1):
        respaced = schedule.respaced(steps, spacing=spacing)
        assert len(respaced) == steps == len(respaced.alphas_cumprod) == len(respaced.alphas_cumprod_prev)
        assert steps == 1 or (respaced.timesteps.diff() > 0).all()
        assert respaced.timesteps[0] >= 0
        assert respaced.timesteps[-1] < len(schedule)
        assert torch.equal(respaced.alphas_cumprod, schedule.alphas_cumprod[respaced.timesteps])
        assert respaced.alphas_cumprod_prev[0] == 1
        assert torch.equal(respaced.alphas_cumprod_prev[1:], respaced.alphas_cumprod[:-1])


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 97, 333, 999])
def test_trailing_steps_are_those_of_diffusers(steps: int):
    theirs = DDIMScheduler(**LDM, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    ours = SolverConfig(steps=steps, spacing="trailing").chain(ldm())
    assert ours.timesteps.flip(0).tolist() == theirs.timesteps.tolist()


def test_trailing_steps_of_a_long_chain_differ():
    schedule = NoiseSchedule.from_scheduler_config(LDM | {"num_train_timesteps": 5000, "beta_end": 0.005})
    assert (schedule.respaced(4999, spacing="trailing").timesteps.diff() > 0).all()


def test_the_full_chain_is_the_schedule_itself():
    schedule = ldm()
    assert schedule.respaced(1000) is schedule


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**9])
def test_bad_step_counts_are_config_errors(steps: int):
    with pytest.raises(ConfigError, match=r"1 … 1000"):
        ldm().respaced(steps)


@pytest.mark.parametrize("steps", [1000, 500, 333, 97, 20, 7, 1])
def test_start_step_is_the_nearest_snr_and_grows_with_sigma(steps: int):
    schedule = ldm().respaced(steps)
    sigma = torch.cat([torch.zeros(1), torch.logspace(-4, 3, 400), torch.tensor([torch.inf])])
    start = schedule.start_step(sigma)
    assert start.dtype == torch.long
    assert (start.diff() >= 0).all()
    assert start[0] == 0
    assert start[-1] == steps - 1
    snr = schedule.snr().tolist()
    for s, i in zip(sigma[1:-1].tolist(), start[1:-1].tolist(), strict=True):
        distance = [abs(1 / s**2 - value) for value in snr]
        assert distance[i] == min(distance)


def test_start_step_inverts_the_schedules_own_noise_levels():
    schedule = ldm().respaced(120)
    assert torch.equal(schedule.start_step(schedule.snr() ** -0.5), torch.arange(120))


def random_step(schedule: NoiseSchedule, index: torch.Tensor, eta: float) -> Step:
    generator = torch.Generator().manual_seed(0)
    z, epsilon = (torch.randn(len(index), 4, 3, 3, generator=generator, dtype=torch.float64) for _ in "ab")
    alpha, previous = schedule.alphas_cumprod[index], schedule.alphas_cumprod_prev[index]
    z0 = predict_z0(z, epsilon, alpha)
    return Step(
        z_BCHW=z,
        z0_BCHW=z0,
        epsilon_BCHW=epsilon,
        alpha_B=alpha,
        alpha_prev_B=previous,
        timestep_B=schedule.timesteps[index],
        index_B=index,
        noise=lambda stream: z,
        eta=eta,
    )


@pytest.mark.parametrize("name", ["ldm", "linear", "short"])
def test_ancestral_steps_have_ddpms_posterior_mean_and_variance(name: str):
    """Ho et al. 2020, equation 7, written with β as it stands there."""
    schedule = NoiseSchedule.from_scheduler_config(CONFIGS[name])
    index = torch.arange(len(schedule))
    step = random_step(schedule, index, eta=1.0)
    alpha_bar, alpha_bar_prev = (
        value[:, None, None, None] for value in (schedule.alphas_cumprod, schedule.alphas_cumprod_prev)
    )
    alpha = alpha_bar / alpha_bar_prev
    beta = 1 - alpha
    mean = alpha_bar_prev.sqrt() * beta / (1 - alpha_bar) * step.z0_BCHW
    mean = mean + alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar) * step.z_BCHW
    std = ((1 - alpha_bar_prev) / (1 - alpha_bar) * beta).sqrt()
    torch.testing.assert_close(reverse_step(step, torch.zeros_like(mean)), mean, rtol=1e-8, atol=1e-9)
    noise = torch.randn(mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(reverse_step(step, noise), mean + std * noise, rtol=1e-8, atol=1e-9)


def test_eta_zero_takes_no_noise_and_the_last_step_is_the_estimate():
    schedule = ldm()
    step = random_step(schedule, torch.tensor([999, 400, 0]), eta=0.0)
    quiet, noisy = (reverse_step(step, noise * torch.ones_like(step.z_BCHW)) for noise in (0.0, 5.0))
    assert torch.equal(quiet, noisy)
    torch.testing.assert_close(quiet[2], step.z0_BCHW[2])
    last = random_step(schedule, torch.tensor([0]), eta=1.0)
    torch.testing.assert_close(reverse_step(last, torch.full_like(last.z_BCHW, 7.0)), last.z0_BCHW)


@pytest.mark.parametrize("steps", [1000, 250, 50])
def test_ddim_steps_equal_diffusers_own(steps: int):
    theirs = DDIMScheduler(**LDM, clip_sample=False, steps_offset=1 if steps < 1000 else 0)
    theirs.set_timesteps(steps)
    schedule = ldm().respaced(steps)
    assert torch.equal(schedule.timesteps, theirs.timesteps.flip(0))
    index = torch.arange(0, steps, max(1, steps // 20))
    step = random_step(schedule, index, eta=0.0)
    ours = reverse_step(step, torch.zeros_like(step.z_BCHW))
    for b, timestep in enumerate(step.timestep_B.tolist()):
        expected = theirs.step(step.epsilon_BCHW[b], timestep, step.z_BCHW[b]).prev_sample
        torch.testing.assert_close(ours[b], expected, rtol=1e-3, atol=1e-3)  # its ᾱ are float32


def test_a_recipe_says_where_its_chain_ends():
    """ReSample's own chain ends at ᾱ_0, the others' at the data."""
    schedule = ldm()
    assert SolverConfig(steps=50).chain(schedule).alphas_cumprod_prev[0] == 1
    own = SolverConfig(steps=50, set_alpha_to_one=False).chain(schedule)
    assert own.alphas_cumprod_prev[0] == schedule.alphas_cumprod[0]
    assert torch.equal(own.alphas_cumprod, SolverConfig(steps=50).chain(schedule).alphas_cumprod)


SCHEDULES = {
    "ldm": NoiseSchedule.from_scheduler_config(LDM),
    "cosine": NoiseSchedule.from_scheduler_config(CONFIGS["cosine"]),
    "respaced": NoiseSchedule.from_scheduler_config(LDM).respaced(20),
    "flow": FlowSchedule.from_scheduler_config({}),
    "shifted flow": FlowSchedule.from_scheduler_config({"shift": 3.0}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_and_signal_to_noise_ratios_lead_to_each_other(name: str):
    """Also between the steps, in both directions."""
    schedule = SCHEDULES[name]
    first, last = schedule.timesteps.double()[[0, -1]].tolist()
    time = torch.linspace(first, last, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.snr_inverse(schedule.snr(time)), time, rtol=1e-9, atol=1e-7)
    ratio = torch.logspace(-3, 2, 100, dtype=torch.float64)
    inside = (ratio > schedule.snr()[-1]) & (ratio < schedule.snr()[0])
    assert inside.sum() > 50
    torch.testing.assert_close(schedule.snr(schedule.snr_inverse(ratio[inside])), ratio[inside], rtol=1e-9, atol=0)
    assert (schedule.snr(time).diff() < 0).all()
    assert schedule.snr(time.reshape(7, 111)).shape == (7, 111)


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_the_steps_the_ratio_is_the_schedules(name: str):
    schedule = SCHEDULES[name]
    torch.testing.assert_close(schedule.snr(schedule.timesteps), schedule.snr(), rtol=1e-4, atol=1e-12)  # float32 times
    torch.testing.assert_close(schedule.snr_inverse(schedule.snr()), schedule.timesteps.double(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("name", ["ldm", "cosine", "respaced"])
def test_beyond_the_ends_times_stay(name: str):
    schedule = SCHEDULES[name]
    ends = schedule.timesteps.double()[[0, -1]]
    assert torch.equal(schedule.snr_inverse(torch.tensor([torch.inf, 0.0])), ends)
    assert torch.equal(schedule.snr(torch.tensor([-5.0, 2000.0])), schedule.snr(ends))


def test_a_chain_of_one_step_has_one_time():
    schedule = ldm().respaced(1)
    assert torch.equal(schedule.snr_inverse(torch.tensor([3.0])), schedule.timesteps.double())


def test_a_flow_is_variance_preserving_after_division():
    """x_t = (1-t) x + t ε over √((1-t)² + t²): ᾱ and 1-ᾱ are the squares of what stands before x and ε."""
    schedule = FlowSchedule.from_scheduler_config({})
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    length = ((1 - t) ** 2 + t**2).sqrt()
    torch.testing.assert_close(schedule.alphas_cumprod, ((1 - t) / length) ** 2)
    torch.testing.assert_close(1 - schedule.alphas_cumprod, (t / length) ** 2)
    assert schedule.timesteps.is_floating_point()
    assert schedule.timesteps[-1] == 1000
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.snr_inverse(torch.tensor([0.0, 1.0])).tolist() == [1000, 500]


@pytest.mark.parametrize("steps", [1000, 50, 20, 1])
def test_a_flows_respacing_keeps_its_ends(steps: int):
    for shift in (1.0, 3.0):
        whole = FlowSchedule.from_scheduler_config({"shift": shift})
        schedule = whole.respaced(steps)
        assert isinstance(schedule, FlowSchedule)
        assert len(schedule) == steps
        assert schedule.timesteps[-1] == 1000
        assert schedule.alphas_cumprod_prev[0] == 1
        assert torch.equal(schedule.alphas_cumprod_prev[1:], schedule.alphas_cumprod[:-1])
        assert whole.respaced(steps, set_alpha_to_one=False).alphas_cumprod_prev[0] < 1 or steps == 1000


def test_a_flow_starts_where_its_noise_is_the_severity():
    schedule = FlowSchedule.from_scheduler_config({"shift": 3.0}).respaced(100)
    steps = torch.arange(100)
    sigma = schedule.snr() ** -0.5
    assert torch.equal(schedule.start_step(sigma), steps)


@pytest.mark.parametrize("steps", [0, 1001])
def test_bad_step_counts_of_a_flow_are_config_errors(steps: int):
    with pytest.raises(ConfigError, match=r"1 … 1000"):
        FlowSchedule.from_scheduler_config({}).respaced(steps)
