"""ReSample: which steps it corrects and in which space, where its inner Adam stops, and the settings it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from flashray.degradations.base import Operator
from flashray.errors import ConfigError
from flashray.schedule import NoiseSchedule
from flashray.solvers import Problem, Step, make_solver
from flashray.solvers.resample import ReSample
from flashray.solvers.solver import reverse_step
from tests.support.golden import golden, toy_schedule

PAPER = {
    "resample_step": 400.0,
    "every": 10,
    "iterations": 100,
    "learning_rate": 0.1,
    "proximal": 1.0,
    "none_above": 750,
    "pixel_above": 300,
}


@dataclass(frozen=True)
class Recording(ReSample):
    """Notes which images are corrected in which space; an image's noise_std is its number."""

    pixels: list[int] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)

    def _in_pixels(self, z0: Tensor, problem: Problem) -> Tensor:
        self.pixels.extend(problem.noise_std_B.int().tolist())
        return z0 + 1

    def _in_latents(self, z0: Tensor, problem: Problem) -> Tensor:
        self.latents.extend(problem.noise_std_B.int().tolist())
        return z0 + 1


@dataclass(frozen=True)
class Identity(Operator):
    def A(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW


def noise(stream: int) -> Tensor:
    return torch.full((1, 1, 2, 2), float(stream), dtype=torch.float64)


def every_step_of(schedule: NoiseSchedule) -> Step:
    """A batch with an image at each step of the schedule."""
    z = torch.randn(len(schedule), 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alphas = schedule.alphas_cumprod, schedule.alphas_cumprod_prev
    return Step(z, z / 2, z / 3, *alphas, schedule.timesteps, torch.arange(len(schedule)), noise)


def numbered(images: int) -> Problem:
    y = torch.zeros(images, 1, 2, 2, dtype=torch.float64)
    return Problem(y, Identity(), torch.arange(images).double(), lambda x: x, lambda z: z)


def test_the_papers_settings_are_the_defaults_but_for_the_task():
    assert make_solver("resample", PAPER) == make_solver("resample")


def test_corrections_fall_on_the_timesteps_of_the_papers_ddim_schedule():
    """500 steps, every tenth of them from the end of the chain, stages at timesteps 750 and 300."""
    schedule = toy_schedule().respaced(500)
    timesteps = golden("ddim500/timesteps")
    assert torch.equal(schedule.timesteps, timesteps)
    solver = Recording(**PAPER)
    step = every_step_of(schedule)
    z_next = solver(step, numbered(500))
    tenth = timesteps[::10].tolist()
    assert [timesteps[n].item() for n in solver.pixels] == [t for t in tenth if 300 < t <= 750]
    # the last step leads to the data and leaves a correction no weight
    assert [timesteps[n].item() for n in solver.latents] == [t for t in tenth if t <= 300][1:]
    assert len(solver.pixels) + len(solver.latents) == 37
    corrected = torch.zeros(500, dtype=torch.bool)
    corrected[solver.pixels + solver.latents] = True
    plain = reverse_step(step, noise(2))
    assert torch.equal(z_next[~corrected], plain[~corrected])
    assert ((z_next - plain)[corrected].abs().flatten(1).amax(dim=1) > 1e-6).all()


def test_a_chain_that_ends_at_its_first_noise_level_is_corrected_there_too():
    solver = Recording(**PAPER)
    solver(every_step_of(toy_schedule().respaced(500, set_alpha_to_one=False)), numbered(500))
    assert solver.latents[0] == 0


def test_the_resampled_latent_is_the_product_of_two_gaussians():
    """N(√ᾱ z*, (1-ᾱ) I) and N(z', s I): precisions add, means weigh by them."""
    schedule = toy_schedule().respaced(500)
    solver, step = Recording(**PAPER), every_step_of(toy_schedule().respaced(500))
    z_next = solver(step, numbered(500))
    z_prime = reverse_step(step, noise(2))
    for n in (10, 100, 300):
        bar, bar_prev = schedule.alphas_cumprod[n], schedule.alphas_cumprod_prev[n]
        s = 400 * (1 - bar_prev) / bar * (1 - bar / bar_prev)
        variance = 1 / (1 / s + 1 / (1 - bar))
        mean = variance * (z_prime[n] / s + bar.sqrt() * (step.z0_BCHW[n] + 1) / (1 - bar))
        torch.testing.assert_close(z_next[n], mean + variance.sqrt() * noise(4)[0], rtol=1e-9, atol=1e-12)


def agree(iterations: int) -> tuple[list[Tensor], Tensor]:
    """Adam from residuals of 0.05, 0.3 and 5 under noise of σ = 0.1 on [-1, 1]: (its iterates, [3] result)."""
    start = torch.tensor([0.05, 0.3, 5.0], dtype=torch.float64)[:, None, None, None]
    iterates: list[Tensor] = []

    def image_of(z: Tensor) -> Tensor:
        iterates.append(z.detach().flatten().clone())
        return z

    problem = Problem(torch.zeros_like(start), Identity(), torch.full((3,), 0.05).double(), lambda x: x, lambda z: z)
    found = ReSample(proximal=0.0, iterations=iterations)._agree(start, image_of, problem)
    return iterates, found.flatten()


def test_adam_stops_each_image_once_its_residual_is_the_noise_and_computes_it_no_more():
    iterates, found = agree(100)
    assert found[0] == 0.05  # near enough from the beginning
    computed = [len(values) for values in iterates]
    assert computed[:2] == [3, 2]
    assert computed == sorted(computed, reverse=True)
    alone = computed.index(1)  # the second has stopped
    second = [values[-2].item() for values in iterates[:alone]]
    assert all(abs(value) > 0.1 for value in second[:-1])
    assert second[-1] == found[1]
    assert abs(second[-1]) <= 0.1
    assert 5 < len(iterates) <= 100  # the third went on after the others had stopped
    assert found[2].abs() <= 0.1


def test_its_steps_are_torchs_adam():
    iterates, _ = agree(20)
    third = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([third], lr=0.1)
    for values in iterates:
        torch.testing.assert_close(values[-1:], third.detach(), rtol=1e-12, atol=0)
        third.grad = 2 * third.detach()
        adam.step()


def test_adam_takes_no_more_than_its_iterations():
    iterates, found = agree(3)
    assert len(iterates) == 3
    assert found[2] == pytest.approx(5 - 3 * 0.1, abs=0.01)


@pytest.mark.parametrize(
    "settings",
    [{"every": 0}, {"iterations": 0}, {"resample_step": 0.0}, {"learning_rate": -0.1}, {"proximal": float("nan")}],
)
def test_bad_settings_are_config_errors(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="resample"):
        make_solver("resample", settings)
