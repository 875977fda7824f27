"""The speed measurements do the work that they claim to; how long it took is not asserted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks.speed import timing as speed
from flashray.active_image import Job
from flashray.degradations import make_degradation
from flashray.prior import LatentPrior
from flashray.solvers import make_solver
from tests.support.engine_jobs import jobs_of
from tests.support.golden import toy_prior

BLUR = make_degradation("gaussian_blur")
DPS = make_solver("latent_dps", {"dc_step": 0.5})


@pytest.fixture
def prior() -> LatentPrior:
    return toy_prior()


def jobs(starts: Sequence[int]) -> list[Job]:
    return jobs_of(starts, torch.float32)


def test_a_row_for_every_batch_size_and_precision(prior: LatentPrior):
    rows = speed.engine_over_loop(prior, BLUR, prior.schedule.respaced(20), jobs([3, 2]), slots=(1, 4), repeats=1)
    assert [(row["precision"], row["slots"]) for row in rows] == [
        ("float32", 1), ("float32", 4), ("bf16", 1), ("bf16", 4),
    ]  # fmt: skip
    assert all(row["ratio"] == row["loop_seconds_per_nfe"] / row["engine_seconds_per_nfe"] for row in rows)
    assert not prior.bf16


def test_slot_utilization_of_units_and_of_mixed_company(prior: LatentPrior):
    schedule = prior.schedule.respaced(40)
    arguments = (2, jobs, prior, BLUR, schedule)
    assert speed.slot_utilization([[4, 4], [2, 2]], *arguments) == 1.0
    assert speed.slot_utilization([[4, 2], [4, 2]], *arguments) == 6 / 8
    assert speed.slot_utilization([[4, 4, 2, 2]], *arguments) == 1.0


def test_components_add_up_and_leave_the_prior_as_it_was(prior: LatentPrior):
    schedule = prior.schedule.respaced(40)
    found = speed.components(prior, BLUR, DPS, schedule, jobs([9, 9]), steps=3)
    assert set(found) == {"denoiser", "decoder", "operator", "other"}
    assert all(seconds > 0 for seconds in found.values())
    assert "epsilon" not in vars(prior)
    gml = speed.components(prior, BLUR, make_solver("gml_dps"), schedule, jobs([9, 9]), steps=2)
    assert "encoder" in gml


def test_a_stopwatch_changes_no_gradient_and_times_forward_and_backward():
    class Counting(speed.Stopwatch):
        calls = 0

        def add(self, name: str, since: float) -> None:
            super().add(name, since)
            self.calls += 1

    watch = Counting(torch.device("cpu"))
    x = torch.randn(5, requires_grad=True)
    timed = watch.wrap("square", lambda v: v.square())
    (gradient,) = torch.autograd.grad((timed(timed(x)) + x).sum(), x)
    torch.testing.assert_close(gradient, 4 * x**3 + 1)
    assert watch.calls == 4  # two forward, two backward
    assert watch.seconds["square"] > 0


def test_flops_are_counted_forward_and_backward(prior: LatentPrior):
    schedule = prior.schedule.respaced(40)
    with_gradient = speed.flops_fraction(prior, BLUR, DPS, schedule, jobs([9, 9]), repeats=1)
    without = speed.flops_fraction(prior, BLUR, make_solver("proximal", {"iterations": 1}), schedule, jobs([9, 9]), 1)
    assert with_gradient["gflop_per_nfe"] > 0
    assert without["gflop_per_nfe"] > 0
    assert 0 < with_gradient["fraction"] < 10


def test_a_recipe_against_the_whole_chain(prior: LatentPrior):
    found = speed.recipe_over_full_loop(
        prior,
        BLUR,
        DPS,
        prior.schedule.respaced(20),
        jobs([3, 1]),
        eta=0.0,
        slots=2,
        kind="bf16",
        loop_steps=2,
        repeats=1,
    )
    assert found["nfe"] == 2
    assert found["ratio"] == found["recipe_seconds"] / found["loop_seconds"]
