"""Ways to make units of an archive and to dispatch them, compared by simulation with the packing that runs use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.simulation import Pool, simulate
from flashray.pipeline.slot_utilization import slot_steps
from flashray.pipeline.units import (
    ALONE,
    choose_unit_images,
    dearest_first,
    hardest_first,
    pack,
    unit_costs,
)
from flashray.pipeline.workload import Floats, Integers, Workload

# (start steps, mean images of a unit, slots, actors) ↦ (order of the images, unit of each, order of dispatch)
Way = Callable[[Integers, int, int, int], tuple[Integers, Integers, Integers]]


def as_listed(steps: Integers, unit_images: int, slots: int, actors: int) -> tuple[Integers, Integers, Integers]:
    """No bucketing: neighbours of the listing, in its order."""
    return _in_order(np.arange(len(steps)), unit_images)


def bucketed(steps: Integers, unit_images: int, slots: int, actors: int) -> tuple[Integers, Integers, Integers]:
    """As many images of like start step in each unit; dispatched in an order that knows nothing of cost."""
    order, unit, dispatch = _in_order(hardest_first(steps), unit_images)
    return order, unit, np.random.default_rng(0).permutation(dispatch)


def longest_first(steps: Integers, unit_images: int, slots: int, actors: int) -> tuple[Integers, Integers, Integers]:
    """As many images of like start step in each unit, dearest first."""
    return _in_order(hardest_first(steps), unit_images)


def equal_cost(steps: Integers, unit_images: int, slots: int, actors: int) -> tuple[Integers, Integers, Integers]:
    """Units of equal cost, cut between slotfuls, dearest first."""
    return _dearest(steps, *pack(Workload.of_windows(steps), unit_images, slots, actors=1))


def tapered(steps: Integers, unit_images: int, slots: int, actors: int) -> tuple[Integers, Integers, Integers]:
    """What a run does: `equal_cost`, and smaller units at the end."""
    return _dearest(steps, *pack(Workload.of_windows(steps), unit_images, slots, actors))


WAYS: dict[str, Way] = {
    "no bucketing": as_listed,
    "buckets": bucketed,
    "buckets, longest first": longest_first,
    "equal cost, whole slotfuls": equal_cost,
    "smaller units at the end": tapered,
}


@dataclass(frozen=True)
class Result:
    """One simulated dispatch.

    Attributes:
        units: how many there were.
        slot_utilization: useful slot-steps over all slot-steps, inside units.
        over_ideal: makespan over the time of all images' steps with every slot of every actor filled all along.
        deaths: of actors.
    """

    units: int
    slot_utilization: float
    over_ideal: float
    deaths: int


def compare(
    steps: Integers,
    way: Way,
    slots: int,
    pool: Pool,
    unit_images: int | None = None,
    step_seconds: float = 1.0,
) -> Result:
    """Simulate a dispatch in which a batched step takes the same time however few of its slots are filled.

    Args:
        steps: [n] start steps, in the order of the listing.
        slots: images in flight of each actor.
        unit_images: mean number of images of a unit; default what a run would choose.
        step_seconds: of a batched step; what comes beside a chain counts as `ALONE` of an image's steps.
    """
    size = unit_images or choose_unit_images(Workload.of_windows(steps), pool.actors, slots)
    order, unit, dispatch = way(steps, size, slots, pool.actors)
    nfe, first = steps[order], np.flatnonzero(np.diff(unit, prepend=-1))
    steps_US = slot_steps(nfe, first, slots)
    beside = ALONE / slots * np.diff(np.append(first, len(nfe)))
    seconds: Floats = step_seconds * (steps_US[:, 0] + beside)[dispatch]
    outcome = simulate(seconds, pool)
    fill = seconds.sum() / (step_seconds * (nfe.sum() + ALONE * len(nfe)) / slots)  # time held over time used
    return Result(len(first), slot_utilization(steps_US), outcome.over_ideal * float(fill), outcome.deaths)


def slot_utilization(steps_US: Integers) -> float:
    """Slot-steps that update an image over all slot-steps; 1 if there are none."""
    held = int(steps_US[:, 0].sum()) * steps_US.shape[1]
    return float(steps_US.sum() / held) if held else 1.0


def makespan_over_ideal(steps: Integers, all_slots: int = 1024, slots: int = 8) -> float:
    """What a run's packing reaches on `all_slots` solver slots, actors × slots in flight."""
    return compare(steps, tapered, slots, Pool(actors=all_slots // slots)).over_ideal


def disturbed(pool: Pool, ideal: float) -> dict[str, Pool]:
    """The pool in trouble; `ideal` is the makespan without any, in the pool's unit of time."""
    return {
        "nothing goes wrong": pool,
        "no unit waits at an actor": dataclasses.replace(pool, ahead=0),
        "start-up of 2 % of the makespan": dataclasses.replace(pool, start_up=0.02 * ideal),
        "a tenth of the actors dies once": dataclasses.replace(pool, failures=0.1 / ideal, start_up=0.02 * ideal),
        "each actor dies once": dataclasses.replace(pool, failures=1 / ideal, start_up=0.02 * ideal),
        "5 % of the actors are twice as slow": dataclasses.replace(pool, slow=0.05),
        "in waves of 10,000 units": dataclasses.replace(pool, wave=10_000),
    }


def _in_order(order: Integers, unit_images: int) -> tuple[Integers, Integers, Integers]:
    unit = np.arange(len(order)) // unit_images
    return order, unit, np.arange(unit[-1] + 1)


def _dearest(steps: Integers, order: Integers, unit: Integers) -> tuple[Integers, Integers, Integers]:
    load = Workload.of_windows(steps[order])
    return order, unit, dearest_first(unit_costs(load, np.flatnonzero(np.diff(unit, prepend=-1))))
