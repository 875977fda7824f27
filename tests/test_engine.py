from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.speed.timing import SlotUtilization
from flashray import engine
from flashray.active_image import Job, Solved
from flashray.degradations import make_degradation
from flashray.engine import solve
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.solvers import SOLVERS, make_solver
from tests.support.engine_jobs import jobs_of
from tests.support.golden import ToyAutoencoder, ToyDenoiser, toy_prior
from tests.support.models import SIDE, dc, unet

BLUR = make_degradation("gaussian_blur")
DPS = make_solver("latent_dps", {"dc_step": 0.5})
STARTS = (31, 12, 1, 0, 25, 7, 31, 2, 18, 0, 9)


@pytest.fixture
def prior() -> LatentPrior:
    """The toy prior in float64, so that only a real dependence on the batch can show."""
    return toy_prior().double()


def schedule_of(prior: LatentPrior) -> NoiseSchedule:
    return prior.schedule.respaced(40)


def run(prior: LatentPrior, jobs: Sequence[Job], slots: int, **options: Any) -> dict[str, Solved]:
    solver, schedule = options.pop("solver", DPS), options.pop("schedule", schedule_of(prior))
    solved = list(solve(prior, BLUR, solver, schedule, jobs, slots, **options))
    assert sorted(one.key for one in solved) == sorted(job.key for job in jobs)
    return {one.key: one for one in solved}


def largest_difference(some: dict[str, Solved], others: dict[str, Solved]) -> float:
    return max((some[key].image - others[key].image).abs().max().item() for key in some)


@pytest.fixture
def channels() -> int:
    return ToyAutoencoder().encode(torch.zeros(1, 3, 32, 32)).latent.shape[1]


@pytest.mark.parametrize(
    ("name", "settings", "bound"),
    [
        *((name, {}, 1e-10) for name in SOLVERS if name not in ("resample", "proximal")),
        ("resample", {"iterations": 5, "every": 3}, 1e-10),
        ("proximal", {"iterations": 3}, 1e-10),
        # early on ρ is next to nothing, and conjugate gradients pass the rounding of another batch size on, larger
        # with each iteration: 2e-9 was seen; a mix-up of images shows in 1e-1
        ("proximal", {"iterations": 20}, 1e-8),
    ],
)
def test_no_solver_lets_images_meet(
    prior: LatentPrior, channels: int, name: str, settings: dict[str, Any], bound: float
):
    """Each update rule keeps its norms, gradients and stopping rules to the image."""
    solver = make_solver(name, settings)
    jobs = jobs_of((24, 12, 1, 0, 31), channels=channels)
    alone = run(prior, jobs, slots=1, solver=solver)
    assert all(one.error is None for one in alone.values())
    assert largest_difference(alone, run(prior, jobs[::-1], slots=3, solver=solver)) < bound


def test_images_without_a_step_land_together(prior: LatentPrior, channels: int, monkeypatch: pytest.MonkeyPatch):
    batches: list[int] = []
    decode = prior.decode
    monkeypatch.setattr(prior, "decode", lambda z: batches.append(len(z)) or decode(z))
    found = run(prior, jobs_of((0,) * 7, channels=channels), slots=3)
    assert batches == [3, 3, 1]
    assert {one.nfe for one in found.values()} == {0}


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_does_not_depend_on_its_batch(prior: LatentPrior, channels: int, eta: float):
    """Alone, in sevens, in another order, all at once: slots are refilled in the middle of other images' chains."""
    jobs = jobs_of(STARTS, channels=channels)
    alone = run(prior, jobs, slots=1, eta=eta)
    shuffled = random.Random(0).sample(jobs, len(jobs))
    for slots, order in ((7, jobs), (7, shuffled), (3, shuffled), (100, jobs[::-1])):
        assert largest_difference(alone, run(prior, order, slots, eta=eta)) < 1e-10
    by_hand = run(prior, [jobs[4]], slots=7, eta=eta)
    assert largest_difference(by_hand, alone) < 1e-10


def test_an_image_depends_on_everything_of_its_own(prior: LatentPrior, channels: int):
    """The tolerance above has teeth: each of these moves the image by far more."""
    job = jobs_of([20], channels=channels)[0]
    base = run(prior, [job], slots=1)
    others = {
        "seed": replace(job, seed=job.seed + 1),
        "y": replace(job, y=job.y.flip(2)),
        "blur": replace(job, parameters={"blur_std": job.parameters["blur_std"] + 0.5}),
        "start": replace(job, start_step=21),
        "latent": replace(job, z_start=job.z_start + 0.01),
    }
    for other in others.values():
        assert largest_difference(base, run(prior, [other], slots=1)) > 1e-5


def test_a_real_unet_in_float32_agrees_to_rounding():
    """float32 convolutions round differently in another batch; after 10 updates images agree to 1e-4 of [-1, 1]."""
    schedule = NoiseSchedule.from_scheduler_config({"beta_schedule": "scaled_linear"})
    prior = LatentPrior(dc(), unet(), schedule, SIDE, scale=2.5).eval().requires_grad_(False)
    jobs = jobs_of([10, 3, 0, 7], torch.float32)
    options = {"schedule": schedule.respaced(50)}
    alone = run(prior, jobs, 1, **options)
    assert largest_difference(alone, run(prior, jobs[::-1], 3, **options)) < 1e-4


class Counting(ToyDenoiser):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[int]] = []

    def forward(self, z: Tensor, timestep: Tensor) -> Any:
        self.calls.append(timestep.tolist())
        return super().forward(z, timestep)


@pytest.mark.parametrize("slots", [1, 3, 7, 50])
def test_every_image_costs_exactly_its_start_step(prior: LatentPrior, channels: int, slots: int):
    prior.denoiser = denoiser = Counting()
    schedule = schedule_of(prior)
    widths: list[int] = []
    solved = run(prior, jobs_of(STARTS, channels=channels), slots, on_step=widths.append)
    for n, start in enumerate(STARTS):
        assert solved[f"{n}.png"].nfe == start
        assert solved[f"{n}.png"].seconds >= 0
        assert solved[f"{n}.png"].error is None
    assert [len(call) for call in denoiser.calls] == widths
    assert sum(widths) == sum(STARTS)
    # all the timesteps that were asked for are those of the chains, no more and no less
    asked = sorted(timestep for call in denoiser.calls for timestep in call)
    assert asked == sorted(t for start in STARTS for t in schedule.timesteps[:start].tolist())


@pytest.mark.parametrize("slots", [1, 2, 4, 6])
def test_no_slot_idles_while_images_wait(prior: LatentPrior, channels: int, slots: int):
    widths: list[int] = []
    starts = sorted(STARTS, reverse=True)
    run(prior, jobs_of(starts, channels=channels), slots, on_step=widths.append)
    # an event-by-event account of the same queue
    queue, flying, expected = [start for start in starts if start], [], []
    while queue or flying:
        while queue and len(flying) < slots:
            flying.append(queue.pop(0))
        expected.append(len(flying))
        flying = [left - 1 for left in flying if left > 1]
    assert widths == expected
    assert set(widths[: len(widths) - starts[0]]) <= {slots}


def test_images_come_as_they_finish_and_jobs_may_be_lazy(prior: LatentPrior, channels: int):
    jobs = jobs_of([5, 0, 2, 9], channels=channels)
    solving = solve(prior, BLUR, DPS, schedule_of(prior), (job for job in jobs), slots=4)
    assert [one.key for one in solving] == ["1.png", "2.png", "0.png", "3.png"]


@pytest.mark.parametrize("starts", [[], [0], [0, 0, 0], [0, 1, 0]])
def test_images_without_steps_are_decoded_as_they_are(prior: LatentPrior, channels: int, starts: list[int]):
    jobs = jobs_of(starts, channels=channels)
    solved = run(prior, jobs, slots=2)
    for job in jobs:
        if job.start_step == 0:
            expected = prior.decode(job.z_start[None])[0].clamp(-1, 1)
            torch.testing.assert_close(solved[job.key].image, expected)
            assert solved[job.key].nfe == 0


def test_images_are_clamped(prior: LatentPrior, channels: int):
    prior.autoencoder.decode = lambda z: type("", (), {"sample": z.sum(dim=1, keepdim=True).expand(-1, 3, -1, -1) * 50})
    image = run(prior, jobs_of([0], channels=channels), slots=1)["0.png"].image
    assert image.min() == -1
    assert image.max() == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["y", "z_start", "parameters"])
def test_one_image_that_diverges_is_an_error_of_that_image_alone(
    prior: LatentPrior, channels: int, where: str, value: float
):
    jobs = jobs_of([8, 8, 5, 11], channels=channels)
    good = run(prior, jobs, slots=4)
    broken = {name: tensor.clone() for name, tensor in {"y": jobs[2].y, "z_start": jobs[2].z_start}.items()}
    if where == "parameters":
        jobs[2] = replace(jobs[2], parameters={"blur_std": torch.tensor(torch.nan, dtype=torch.float64)})
    else:
        broken[where][0, 3, 4] = value
        jobs[2] = replace(jobs[2], **{where: broken[where]})
    solved = run(prior, jobs, slots=4)
    lost = solved.pop("2.png")
    assert lost.image is None
    assert lost.error is not None
    assert "not finite" in lost.error
    assert lost.nfe == 5
    assert all(one.error is None for one in solved.values())
    assert largest_difference(solved, good) < 1e-10


def test_an_infinite_latent_is_not_taken_for_a_white_image(prior: LatentPrior, channels: int):
    """tanh, and the clamp to [-1, 1], make a finite image of it."""
    prior.autoencoder.decode = lambda z: type("", (), {"sample": torch.tanh(z[:, :3])})
    job = jobs_of([0], channels=max(3, channels))[0]
    job.z_start[0] = torch.inf
    assert run(prior, [job], slots=1)["0.png"].image is None


def test_no_gradient_of_weights_accumulates():
    schedule = NoiseSchedule.from_scheduler_config({"beta_schedule": "scaled_linear"})
    prior = LatentPrior(dc(), unet(), schedule, SIDE).requires_grad_(True)
    run(prior, jobs_of([3, 2], torch.float32), slots=2, schedule=schedule.respaced(20))
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_no_graph_outlives_a_step(prior: LatentPrior, channels: int):
    """The latents of a step, and with them all that autograd kept, are gone once the next step begins."""
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watched:
        needs_gradient, needs_adjoint = True, False

        def __call__(self, step: Any, problem: Any) -> Tensor:
            gc.collect()
            alive.append(sum(ref() is not None for ref in seen))
            assert step.z_BCHW.is_leaf
            assert step.z0_BCHW.requires_grad
            seen.append(weakref.ref(step.z0_BCHW))
            return DPS(step, problem)

    list(solve(prior, BLUR, Watched(), schedule_of(prior), jobs_of([6, 4], channels=channels), slots=2))
    assert alive == [0] * 6


def test_solvers_without_gradient_run_without_autograd(prior: LatentPrior, channels: int):
    class Plain:
        needs_gradient, needs_adjoint = False, False

        def __call__(self, step: Any, problem: Any) -> Tensor:
            assert not torch.is_grad_enabled()
            assert not step.z0_BCHW.requires_grad
            return step.z0_BCHW

    assert len(list(solve(prior, BLUR, Plain(), schedule_of(prior), jobs_of([3], channels=channels), 1))) == 1


def test_the_callers_grad_mode_is_left_alone(prior: LatentPrior, channels: int):
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            for one in solve(prior, BLUR, DPS, schedule_of(prior), jobs_of([2, 0, 1], channels=channels), 2):
                assert torch.is_grad_enabled() is enabled
                assert not one.image.requires_grad


def test_every_step_draws_its_own_noise_of_the_image(
    prior: LatentPrior, channels: int, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[tuple[int, int]] = []
    real = engine.normal

    def recording(seed_B: Tensor, step_B: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
        drawn.extend(zip(seed_B.tolist(), step_B.tolist(), strict=True))
        return real(seed_B, step_B, shape, stream)

    monkeypatch.setattr(engine, "normal", recording)
    jobs = jobs_of(STARTS, channels=channels)
    run(prior, jobs, slots=3)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == {(job.seed, i) for job in jobs for i in range(job.start_step)}


class Hungry:
    """A solver that has memory for so many images at once only."""

    needs_gradient, needs_adjoint = True, False

    def __init__(self, most: int) -> None:
        self.most, self.refused = most, 0

    def __call__(self, step: Any, problem: Any) -> Tensor:
        if len(step.z_BCHW) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return DPS(step, problem)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_out_of_memory_halves_the_slots_and_loses_nothing(prior: LatentPrior, channels: int, most: int):
    jobs, hungry = jobs_of(STARTS, channels=channels), Hungry(most)
    widths: list[int] = []
    solved = run(prior, jobs, slots=8, solver=hungry, on_step=widths.append)
    assert hungry.refused == {1: 3, 2: 2, 3: 2}[most]
    assert max(widths) <= most
    assert sum(widths) == sum(STARTS)
    assert largest_difference(solved, run(prior, jobs, slots=1)) < 1e-10


def test_one_image_too_large_for_memory_is_an_error(prior: LatentPrior, channels: int):
    with pytest.raises(torch.OutOfMemoryError):
        run(prior, jobs_of([3, 2], channels=channels), slots=2, solver=Hungry(0))


def test_slot_utilization_is_the_share_of_slots_that_worked(prior: LatentPrior, channels: int):
    slot_utilization = SlotUtilization(slots=2)
    assert slot_utilization.share == 1.0
    run(prior, jobs_of([4, 2, 1], channels=channels), slots=2, on_step=slot_utilization)
    # slot one: four updates; slot two: two, then one, then it idles
    assert (slot_utilization.useful, slot_utilization.steps) == (7, 4)
    assert slot_utilization.share == 7 / 8
