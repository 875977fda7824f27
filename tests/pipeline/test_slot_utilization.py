"""Slots inside a unit: what is told from start steps alone is what the engine does."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from benchmarks.dispatch import slot_utilization
from flashray.pipeline.slot_utilization import batch_seconds, slot_steps


def engine_counts(nfe: list[int], slots: int) -> list[int]:
    """Slots filled in each batched step of the engine's loop, written out image by image."""
    queue, flights, counts = deque(nfe), [], []
    while queue or flights:
        while queue and len(flights) < slots:
            flights.append(queue.popleft())
        flights = [left for left in flights if left > 0]
        if len(flights) < slots and queue:
            continue
        if flights:
            counts.append(len(flights))
        flights = [left - 1 for left in flights if left > 1]
    return counts


def counts_of(steps: np.ndarray) -> list[int]:
    """Slots filled in each batched step, from a row of `slot_steps`."""
    return [int((steps > step).sum()) for step in range(steps.max(initial=0))]


@pytest.mark.parametrize("slots", [1, 2, 8])
@pytest.mark.parametrize("order", ["descending", "as they come"])
def test_slots_fill_as_the_loop_fills_them(slots: int, order: str) -> None:
    random = np.random.default_rng(slots)
    units = [random.integers(0, 30, size) for size in (1, 3, 8, 17, 40)]
    if order == "descending":
        units = [np.sort(unit)[::-1] for unit in units]
    first = np.cumsum([0, *map(len, units)])[:-1]
    steps = slot_steps(np.concatenate(units), first, slots)
    assert steps.shape == (len(units), slots)
    for unit, row in zip(units, steps, strict=True):
        assert counts_of(row) == engine_counts(unit.tolist(), slots)
        assert row.sum() == unit.sum()


def test_the_engine_itself_agrees() -> None:
    from flashray.degradations import make_degradation
    from flashray.engine import solve
    from flashray.solvers import make_solver
    from tests.support.engine_jobs import jobs_of
    from tests.support.golden import toy_prior

    nfe = [9, 7, 7, 4, 2, 1, 0]
    blur, solver = make_degradation("gaussian_blur"), make_solver("latent_dps", {"dc_step": 0.5})
    prior, counts = toy_prior().double(), []
    channels = prior.encode(torch.zeros(1, 3, 32, 32, dtype=torch.float64)).shape[1]
    jobs = jobs_of(nfe, channels=channels)
    finished = list(solve(prior, blur, solver, prior.schedule.respaced(40), jobs, slots=3, on_step=counts.append))
    assert len(finished) == len(nfe)
    assert counts == counts_of(slot_steps(np.array(nfe), np.array([0]), 3)[0])


def test_full_slots_are_all_useful() -> None:
    equal = slot_steps(np.full(32, 10), np.array([0, 16]), 8)
    assert slot_utilization(equal) == 1
    assert slot_utilization(slot_steps(np.full(12, 10), np.array([0]), 8)) == pytest.approx(12 / 16)
    assert slot_utilization(slot_steps(np.zeros(5, np.int64), np.array([0]), 8)) == 1


def test_seconds_follow_the_slots_that_are_filled() -> None:
    steps = slot_steps(np.array([5, 3, 3]), np.array([0]), 2)  # slots fly 5 and 6 steps: five of both, one of one
    assert batch_seconds(steps, np.array([1.0, 10.0])).tolist() == [5 * 10 + 1 * 1]
    flat = batch_seconds(steps, np.array([4.0, 4.0]))
    assert flat.tolist() == [6 * 4.0]


def test_nothing_to_fly() -> None:
    none = slot_steps(np.array([], np.int64), np.array([], np.int64), 4)
    assert none.shape == (0, 4)
    assert slot_utilization(none) == 1
