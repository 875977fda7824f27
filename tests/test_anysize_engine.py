"""Photos of any size in the engine: windows against the whole, grouping, regions, and one window as it always was."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed.timing import SlotUtilization
from flashray import engine
from flashray.active_image import Job, Regions, Solved, grid_of, make_problem, start_noise
from flashray.degradations import make_degradation
from flashray.engine import advance, solve
from flashray.errors import ConfigError
from flashray.prior import LatentPrior, SpaceToDepth
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_SOLVER, image_seed, normal
from flashray.severity import Start
from flashray.solvers import SOLVERS, Solver, make_solver
from flashray.solvers.solver import Problem, Step, reverse_step
from flashray.windows import LatentGrid, Windows, crop
from tests.support.golden import toy_prior
from tests.support.models import SIDE, dc, unet
from tests.support.windows import corners

SCHEDULE = NoiseSchedule.from_scheduler_config({"beta_schedule": "scaled_linear"})
CHAIN = SCHEDULE.respaced(30)
BLUR = make_degradation("gaussian_blur", {"kernel_size": 15})
SETTINGS: dict[str, dict[str, Any]] = {
    "unguided": {},
    "latent_dps": {"dc_step": 0.5},
    "gml_dps": {"dc_step": 0.5},
    "psld": {"dc_step": 0.5},
    "resample": {"every": 3, "iterations": 5},
    "proximal": {"iterations": 4},
}
FACTOR, WINDOW = 2, 6  # of the toys: windows of 12 pixels


class Positionwise(nn.Module):
    """The exact denoiser of independent N(0.2, ¼) elements: it sees each position alone, so windows change nothing."""

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        alpha = SCHEDULE.alphas_cumprod[timestep][:, None, None, None].to(z)
        return SimpleNamespace(sample=(1 - alpha).sqrt() * (z - alpha.sqrt() * 0.2) / (alpha / 4 + 1 - alpha))


class Local(nn.Module):
    """A denoiser whose answer depends on what else its window shows."""

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        plain = Positionwise()(z, timestep).sample
        return SimpleNamespace(sample=plain + 0.1 * torch.tanh(plain.mean(dim=(2, 3), keepdim=True)))


class Plain:
    """The reverse step alone."""

    needs_gradient, needs_adjoint, name = False, False, "plain"

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        return reverse_step(step, step.noise(STREAM_SOLVER))


class Counting(Positionwise):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        self.calls.append(timestep.tolist())
        return super().forward(z, timestep)


def prior_of(denoiser: nn.Module | None = None, window: int = WINDOW) -> LatentPrior:
    """Pixels as latents of 12 channels: the only size in it is the window's."""
    denoiser = denoiser or Positionwise()
    return LatentPrior(SpaceToDepth(factor=FACTOR), denoiser, SCHEDULE, sample_size=FACTOR * window).double()


def job_of(size: tuple[int, int], start: int, number: int = 0, grid: LatentGrid | None = None) -> Job:
    """A photo of (H, W) pixels with its own blur, noise and seed."""
    grid = grid or LatentGrid(FACTOR, WINDOW)
    generator = torch.Generator().manual_seed(number)
    height, width = grid.latent_size(size)
    return Job(
        key=f"{number}.png",
        seed=image_seed(0, f"{number}.png"),
        y=torch.rand(3, *size, generator=generator, dtype=torch.float64) * 2 - 1,
        parameters={"blur_std": torch.tensor(0.5 + 0.2 * number, dtype=torch.float64)},
        noise_std=0.05,
        z_start=torch.randn(3 * FACTOR**2, height, width, generator=generator, dtype=torch.float64),
        start_step=start,
    )


SIZES = ((12, 12), (30, 41), (12, 12), (13, 50), (30, 41), (5, 1), (24, 24))
STARTS = (7, 3, 9, 0, 8, 4, 1)


def jobs_of(sizes: Sequence[tuple[int, int]] = SIZES, starts: Sequence[int] = STARTS) -> list[Job]:
    return [job_of(size, start, n) for n, (size, start) in enumerate(zip(sizes, starts, strict=True))]


def run(
    prior: LatentPrior, jobs: Sequence[Job], slots: int = 8, solver: Any = None, **options: Any
) -> dict[str, Solved]:
    solver = solver or solver_of("proximal")
    solved = list(solve(prior, options.pop("degradation", BLUR), solver, CHAIN, jobs, slots, **options))
    assert sorted(one.key for one in solved) == sorted(job.key for job in jobs)
    return {one.key: one for one in solved}


def solver_of(name: str) -> Solver:
    return make_solver(name, SETTINGS[name])


def largest_difference(some: dict[str, Solved], others: dict[str, Solved]) -> float:
    differences = []
    for key, one in some.items():
        other = others[key].image
        assert one.image is not None
        assert other is not None
        differences.append((one.image - other).abs().max().item())
    return max(differences)


def test_the_grid_is_read_off_the_prior():
    assert grid_of(prior_of()) == LatentGrid(FACTOR, WINDOW)
    assert grid_of(toy_prior()) == LatentGrid(4, 8)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_window_is_the_plain_loop_to_the_last_bit(name: str, eta: float):
    """In float32, with networks: a photo of one window gets what a loop over its steps without windows gives."""
    prior = LatentPrior(dc(), unet(), SCHEDULE, SIDE, scale=2.5).eval().requires_grad_(False)
    generator, solver = torch.Generator().manual_seed(0), solver_of(name)
    jobs = [
        Job(
            key=str(n),
            seed=image_seed(0, str(n)),
            y=torch.rand(3, SIDE, SIDE, generator=generator) * 2 - 1,
            parameters={"blur_std": torch.tensor(0.5 + 0.3 * n)},
            noise_std=0.05,
            z_start=torch.randn(4, 8, 8, generator=generator),
            start_step=start,
        )
        for n, start in enumerate((6, 3, 5, 0, 2))
    ]
    found = run(prior, jobs, 1, solver, eta=eta)
    for job in jobs:
        seed_B, problem = make_problem(prior, BLUR, [job])
        z = job.z_start[None]
        for i in reversed(range(job.start_step)):
            z = advance(prior, solver, CHAIN, problem, z, torch.tensor([i]), seed_B, eta)
        assert torch.equal(found[job.key].image, prior.decode(z)[0].clamp(-1, 1))
        assert found[job.key].nfe == job.start_step


@pytest.mark.parametrize("name", ["proximal", "resample"])
def test_windows_of_a_positionwise_denoiser_are_the_whole(name: str):
    """Windows of 6 positions against one window as large as the photo; solvers without norms do not see the size."""
    job, solver = job_of((42, 42), 9), solver_of(name)
    windows, whole = (run(prior_of(window=side), [job], solver=solver) for side in (WINDOW, 21))
    assert largest_difference(windows, whole) < 1e-9


@pytest.mark.parametrize("name", SOLVERS)
def test_no_photo_depends_on_its_neighbours_or_the_slots(name: str):
    jobs, prior = jobs_of(), prior_of(Local())
    alone = run(prior, jobs, 1, solver_of(name))
    assert all(one.error is None for one in alone.values())
    shuffled = random.Random(0).sample(jobs, len(jobs))
    for slots, order in ((4, jobs), (7, shuffled), (1000, jobs[::-1])):
        assert largest_difference(alone, run(prior, order, slots, solver_of(name))) < 1e-8


@pytest.mark.parametrize("side", [2, 6, 12])
@pytest.mark.parametrize("name", ["latent_dps", "gml_dps", "psld"])
def test_a_step_size_means_the_same_at_every_size(name: str, side: int):
    """A mosaic of one tile moves as the tile does, and would move √(its number of tiles) times less by plain norms.

    A tile of 12 pixels is a window; smaller ones are padded.
    """
    prior, mask = prior_of(), (torch.rand(1, side, side, generator=torch.Generator().manual_seed(5)) > 0.3).double()
    tile, grid = replace(job_of((side, side), 5), parameters={"mask": mask}), grid_of(prior)
    small, large = grid.valid_size((side, side)), grid.valid_size((2 * side, 3 * side))
    z_start = torch.zeros(3 * FACTOR**2, *grid.latent_size((2 * side, 3 * side)), dtype=torch.float64)
    z_start[:, : large[0], : large[1]] = crop(tile.z_start, small).repeat(1, 2, 3)
    mosaic = replace(tile, y=tile.y.repeat(1, 2, 3), z_start=z_start, parameters={"mask": mask.repeat(1, 2, 3)})
    inpainting = make_degradation("random_inpainting")
    moved = []
    for job in (tile, mosaic):
        seed_B, problem = make_problem(prior, inpainting, [job], grid)
        z, step_B = job.z_start[None], torch.tensor([job.start_step - 1])
        plain, guided = (
            advance(prior, solver, CHAIN, problem, z, step_B, seed_B, eta=0.0) for solver in (Plain(), solver_of(name))
        )
        moved.append(guided - plain)
    assert moved[0].abs().max() > 1e-3
    torch.testing.assert_close(crop(moved[0], small).repeat(1, 1, 2, 3), crop(moved[1], large), rtol=1e-9, atol=1e-12)


def test_photos_with_other_parameters_than_their_neighbours_are_solved_as_alone():
    """Of one size, some with a mask of their own and some with the family's numbers."""
    numbers = {"missing": torch.tensor(0.4), "mask_seed": torch.tensor(7.0)}
    mask = (torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(5)) > 0.3).double()
    jobs = [
        replace(job, parameters={"mask": mask} if n % 2 else numbers)
        for n, job in enumerate(jobs_of([(12, 12)] * 4, [5, 5, 3, 4]))
    ]
    inpainting = make_degradation("random_inpainting")
    for order in (jobs, jobs[::-1]):
        together = run(prior_of(), order, degradation=inpainting)
        for job in jobs:
            alone = run(prior_of(), [job], degradation=inpainting)
            assert largest_difference(alone, {job.key: together[job.key]}) < 1e-8


def test_windows_sample_the_prior_at_every_position():
    """From pure noise with no data, elements are the prior's: independent, N(0.2, ¼) whatever window they are in."""
    chain, job = SCHEDULE.respaced(200), job_of((60, 84), 200)
    job = replace(job, z_start=start_noise(job.seed, job.z_start))
    image = next(solve(prior_of(), BLUR, Plain(), chain, [job], slots=100)).image
    assert image is not None
    quartiles = image.flatten().quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    expected = 0.2 + 0.5 * torch.tensor([-0.6745, 0, 0.6745]).double()
    torch.testing.assert_close(quartiles, expected, rtol=0, atol=0.02)
    centred = image - 0.2
    for dim in (0, 1, 2):
        length = image.shape[dim]
        correlation = (centred.narrow(dim, 0, length - 1) * centred.narrow(dim, 1, length - 1)).mean() / 0.25
        assert abs(correlation) < 0.05


def test_photos_come_back_at_their_own_size():
    for job in jobs_of():
        image = run(prior_of(), [job])[job.key].image
        assert image is not None
        assert image.shape == job.y.shape


def test_slots_are_counted_in_windows():
    prior = prior_of(denoiser := Counting())
    grid, jobs = grid_of(prior), jobs_of()
    counts: list[int] = []
    solved = run(prior, jobs, 5, on_step=counts.append)
    evaluations = {job.key: job.start_step * len(grid.windows(tuple(job.y.shape[1:]))) for job in jobs}
    assert [len(call) for call in denoiser.calls] == counts
    assert max(counts) == 5
    assert sum(counts) == sum(evaluations.values())
    asked = sorted(t for call in denoiser.calls for t in call)
    expected = [
        t for job in jobs for t in CHAIN.timesteps[: job.start_step].tolist() * len(grid.windows(job.y.shape[1:]))
    ]
    assert asked == sorted(expected)
    for job in jobs:
        assert solved[job.key].nfe == job.start_step


def test_small_photos_share_a_batch_with_a_large_ones_windows():
    prior = prior_of(denoiser := Counting())
    jobs = jobs_of([(20, 20), (12, 12), (12, 12), (12, 13)], [2, 2, 2, 2])
    run(prior, jobs, 8)
    assert [len(call) for call in denoiser.calls] == [8, 8]  # 4 + 1 + 1 + 2


def test_utilization_of_a_photo_that_fills_the_batches():
    utilization = SlotUtilization(slots=4)
    run(prior_of(), [job_of((30, 42), 3)], 4, on_step=utilization)  # 4 x 5 windows
    assert utilization.share == 1.0


# --- regions ---


def regional(job: Job, start_K: Tensor, z_hat: Tensor) -> Job:
    """The job with its windows' starts, from the estimate and the job's own noise."""
    start = int(start_K.max())
    noise = start_noise(job.seed, z_hat)
    alpha = CHAIN.alphas_cumprod[start - 1] if start else torch.ones(()).double()
    z_start = alpha.sqrt() * z_hat + (1 - alpha).sqrt() * noise
    return replace(job, z_start=z_start, start_step=start, regions=Regions(start_K, z_hat))


def estimate_of(job: Job) -> Tensor:
    return 0.2 + 0.5 * torch.randn(job.z_start.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("name", SOLVERS)
def test_starts_that_are_all_the_same_are_the_plain_start(name: str):
    jobs = [regional(job, torch.full((count_of(job),), job.start_step), estimate_of(job)) for job in jobs_of()]
    plain = [replace(job, regions=None) for job in jobs]
    found, expected = (run(prior_of(Local()), some, 6, solver_of(name)) for some in (jobs, plain))
    for key, one in found.items():
        assert torch.equal(one.image, expected[key].image)
        assert one.nfe == expected[key].nfe


def count_of(job: Job) -> int:
    return len(Windows.of(tuple(job.z_start.shape[1:]), WINDOW))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_photo_costs_its_active_windows(name: str):
    job = job_of((30, 42), 0)
    start_K = torch.randint(0, 8, (count_of(job),), generator=torch.Generator().manual_seed(0))
    prior, counts = prior_of(denoiser := Counting()), []
    solved = run(prior, [regional(job, start_K, estimate_of(job))], 100, solver_of(name), on_step=counts.append)
    assert solved[job.key].error is None
    assert solved[job.key].nfe == pytest.approx(start_K.double().mean().item())
    assert sum(counts) == start_K.sum()
    asked = sorted(t for call in denoiser.calls for t in call)
    assert asked == sorted(t for s in start_K.tolist() for t in CHAIN.timesteps[:s].tolist())


@pytest.mark.parametrize("name", SOLVERS)
def test_regions_do_not_depend_on_the_slots(name: str):
    jobs = [
        regional(
            job, torch.randint(0, 8, (count_of(job),), generator=torch.Generator().manual_seed(n)), estimate_of(job)
        )
        for n, job in enumerate(jobs_of())
    ]
    alone = run(prior_of(Local()), jobs, 1, solver_of(name))
    for slots, order in ((5, jobs), (1000, jobs[::-1])):
        assert largest_difference(alone, run(prior_of(Local()), order, slots, solver_of(name))) < 1e-8


def test_positions_that_never_join_stay_the_estimate():
    prior, job = prior_of(Local()), job_of((24, 36), 0)
    windows = Windows.of((12, 18), WINDOW)
    start_K = torch.tensor([0 if column < 9 else 6 for _, column in corners(windows)])
    z_hat = estimate_of(job)
    image = run(prior, [regional(job, start_K, z_hat)])[job.key].image
    quiet = max(column + WINDOW for (_, column), start in zip(corners(windows), start_K, strict=True) if start == 0)
    never = min(column for (_, column), start in zip(corners(windows), start_K, strict=True) if start)
    assert never < quiet  # windows overlap
    expected = prior.decode(z_hat[None])[0].clamp(-1, 1)
    assert torch.equal(image[..., : never * FACTOR], expected[..., : never * FACTOR])
    assert (image[..., never * FACTOR :] != expected[..., never * FACTOR :]).any()


def test_windows_that_wait_change_nothing_for_those_that_run_apart_from_the_overlap():
    """A positionwise denoiser and a solver that looks at no data: active positions run as in a photo that all is."""

    job = job_of((24, 36), 0)
    windows = Windows.of((12, 18), WINDOW)
    start_K = torch.tensor([2 if column < 9 else 6 for _, column in corners(windows)])
    z_hat = estimate_of(job)
    whole = regional(job, torch.full_like(start_K, 6), z_hat)
    some = run(prior_of(), [regional(job, start_K, z_hat)], solver=Plain())[job.key].image
    all_of_it = run(prior_of(), [whole], solver=Plain())[job.key].image
    alone = max(column + WINDOW for (_, column), start in zip(corners(windows), start_K, strict=True) if start == 2)
    torch.testing.assert_close(some[..., alone * FACTOR :], all_of_it[..., alone * FACTOR :], rtol=1e-12, atol=1e-12)


def test_a_job_whose_regions_do_not_fit_is_refused():
    job = job_of((24, 36), 4)
    with pytest.raises(ConfigError, match=r"0\.png: .* windows, the latest of which starts at 4, are given 3 starts"):
        run(prior_of(), [replace(job, regions=Regions(torch.tensor([4, 1, 0]), job.z_start))])
    with pytest.raises(ConfigError, match=r"0\.png: the start latent has"):
        run(prior_of(), [replace(job, z_start=job.z_start[:, 1:])])


def test_the_start_latent_is_the_one_that_start_makes(monkeypatch: pytest.MonkeyPatch):
    """`Start.latent` and the engine's held positions draw one and the same ε."""
    job = job_of((24, 36), 5)
    z_hat, seed_B = estimate_of(job), torch.tensor([job.seed])
    made = Start().latent(z_hat[None], torch.tensor([0.3]), torch.tensor([5]), CHAIN, seed_B)[0]
    expected = regional(job, torch.full((count_of(job),), 5), z_hat).z_start
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)


# --- memory ---


class Hungry:
    """A denoiser that has memory for so many windows at once only."""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        if len(z) > self.most:
            raise torch.OutOfMemoryError("no room")
        return Positionwise()(z, timestep)


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("name", ["proximal", "latent_dps"])
def test_out_of_memory_halves_the_windows_and_loses_nothing(most: int, name: str):
    prior, jobs = prior_of(), jobs_of()
    expected = run(prior, jobs, solver=solver_of(name))
    prior.denoiser = None
    monkey = Hungry(most)
    prior.epsilon = lambda z, t: monkey(z, t).sample  # type: ignore[method-assign]
    counts: list[int] = []
    found = run(prior, jobs, 16, solver=solver_of(name), on_step=counts.append, grid=LatentGrid(FACTOR, WINDOW))
    assert max(counts) <= most
    assert largest_difference(found, expected) < 1e-8


def test_one_window_too_large_for_memory_is_an_error():
    prior = prior_of()
    prior.epsilon = lambda z, t: Hungry(0)(z, t).sample  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        run(prior, jobs_of(), 16)


def test_the_engine_says_which_noise_it_draws(monkeypatch: pytest.MonkeyPatch):
    """Every step of every photo draws its own noise, once."""
    drawn: list[tuple[int, int]] = []

    def recording(seed_B: Tensor, step_B: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
        drawn.extend(zip(seed_B.tolist(), step_B.tolist(), strict=True))
        return normal(seed_B, step_B, shape, stream)

    monkeypatch.setattr(engine, "normal", recording)
    jobs = jobs_of()
    run(prior_of(), jobs, 5)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {(job.seed, i) for job in jobs for i in range(job.start_step)}
