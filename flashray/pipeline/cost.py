"""The cost of a plan: a model of the solver's seconds, measured on the run's actors, and its prediction."""

from __future__ import annotations

import heapq
import json
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flashray import storage
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.slot_utilization import in_flight
from flashray.pipeline.units import Packing, dearest_first, unit_costs, unit_starts
from flashray.pipeline.workload import Floats, Integers, Workload, workload_of


@dataclass(frozen=True)
class CostModel:
    """Seconds of a solver actor.

    A photo of several windows takes, for each of its updates, the time of its windows in the denoiser's batches and
    `step_megapixel` for each of its megapixels, which is what the solver does with the whole photo.
    """

    # numbers of filled slots, ascending from 1, for which a batched step of one-window images was timed
    filled: tuple[int, ...]
    step_seconds: tuple[float, ...]  # seconds of one such step with that many slots filled
    decode_seconds: float  # of a one-window image after its last step (decoding); the engine counts them as the image's
    other_seconds: float  # of a one-window image outside the engine: measuring, severity encoder, scoring
    start_up_seconds: float  # from requesting an actor until its models are loaded
    window_pixels: float = 0.0  # of a one-window image
    # of an update, beside its windows' evaluations, for each million pixels; part of `step_seconds`
    step_megapixel: float = 0.0
    decode_megapixel: float = 0.0  # what decoding an image takes longer for each million pixels beyond one window's
    other_megapixel: float = 0.0  # and what is outside the engine
    samples: int = 1  # restorations of each image; all but `other` is spent on each

    def steps(self, slots: int) -> Floats:
        """[slots] seconds of a batched step with 1 … `slots` filled, interpolated linearly between measurements."""
        return np.interp(np.arange(1, slots + 1), self.filled, self.step_seconds)

    def evaluations(self, slots: int) -> Floats:
        """[slots] seconds of the denoiser's evaluation of 1 … `slots` windows."""
        windows = np.arange(1, slots + 1)
        return np.maximum(self.steps(slots) - windows * self.step_megapixel * self.window_pixels / 1e6, 0)

    @property
    def nfe_seconds(self) -> float:
        """An NFE's share of a batched step with all slots filled."""
        return self.step_seconds[-1] / self.filled[-1]


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a plan."""

    units: int
    slot_utilization: float  # slot-steps that update an image over all slot-steps
    solver_seconds: float  # the predicted sum of the commits' `seconds`
    wall_seconds: float  # of the solve pass, from the actors' start-up to the last unit's end
    actors: int  # that share the units

    @property
    def device_hours(self) -> float:
        """Hours that the actors hold their devices, idle ones at the end included."""
        return self.actors * self.wall_seconds / 3600


def predict(load: Workload, first: Integers, slots: int, actors: int, cost: CostModel) -> Prediction:
    """The cost of units: images in their order, and the index at which each unit begins (`units.unit_starts`)."""
    evaluated_U, share = in_flight(load, first, slots, cost.evaluations(slots))
    beyond = np.maximum(load.pixels - cost.window_pixels, 0) / 1e6
    updates = load.start_step * load.pixels / 1e6 * cost.step_megapixel
    decoded = cost.decode_seconds + beyond * cost.decode_megapixel
    other = cost.other_seconds + beyond * cost.other_megapixel
    solver_U = cost.samples * (evaluated_U + _sums((updates + decoded) * load.touched, first))
    dispatched = (solver_U + _sums(other, first))[dearest_first(unit_costs(load, first))]
    wall = makespan(dispatched, min(actors, max(len(first), 1)), cost.start_up_seconds)
    return Prediction(len(first), share, float(solver_U.sum()), wall, actors)


def makespan(seconds: Floats, actors: int, start_up: float = 0.0) -> float:
    """Seconds from the actors' start-up to the last unit's end; units go in their order to the actor with the fewest.

    An actor works on one unit while another, loaded, waits at it (Ray Data's max_tasks_in_flight_per_actor).
    """
    queue = deque(seconds.tolist())
    waiting: list[deque[float]] = [deque() for _ in range(actors)]
    for held in waiting * 2:
        if queue:
            held.append(queue.popleft())
    # (time, actor): the actor is free then, and takes the unit that waits at it
    free = [(start_up, actor) for actor in range(actors) if waiting[actor]]
    end = 0.0
    while free:
        end, actor = heapq.heappop(free)
        if waiting[actor]:
            heapq.heappush(free, (end + waiting[actor].popleft(), actor))
            if queue and not waiting[actor]:
                waiting[actor].append(queue.popleft())
    return end


def _sums(values: Floats, first: Integers) -> Floats:
    """[units] sums over each unit's images."""
    return np.add.reduceat(values, first) if len(first) else np.zeros(0)


def predict_plan(plan: pa.Table, slots: int, actors: int, cost: CostModel) -> Prediction:
    """The cost of a plan's rows that belong to units."""
    return predict(workload_of(plan), unit_starts(plan["unit_id"].combine_chunks()), slots, actors, cost)


def predict_full(load: Workload, chain: int, slots: int, actors: int, cost: CostModel) -> Prediction | None:
    """The cost of the full chain for these images; None where no step was timed, because the plan has none."""
    if not any(cost.step_seconds):
        return None
    all_touched = np.ones(len(load), bool)
    steps = np.full(len(load), chain, np.int64)
    full = Workload(np.arange(len(load) + 1), steps, load.windows, load.pixels, all_touched)
    return predict_packed(full, Packing(None, slots, actors), cost)


def predict_packed(load: Workload, packing: Packing, cost: CostModel) -> Prediction:
    """The cost of images in the units that a packing makes of them."""
    order, unit = packing(load)
    first = np.flatnonzero(np.diff(unit, prepend=-1))
    return predict(load.take(order), first, packing.slots, packing.actors, cost)


@dataclass(frozen=True)
class Quoted:
    """A cost model and the conditions of its measurement, as kept in the run folder."""

    key: dict[str, Any]  # what the seconds depend on (`calibrate.cost_key`); with another key they are measured again
    cost: CostModel
    actors: int  # of the pool of solvers


def read_quoted(output: str) -> Quoted | None:
    """cost.json of a run folder, or None."""
    try:
        found = json.loads(storage.read_bytes(run_uri(output, "cost.json")))
        curve = {name: tuple(found["cost"].pop(name)) for name in ("filled", "step_seconds")}
        cost = CostModel(**{**found["cost"], **curve})
        return Quoted(found["key"], cost, found["actors"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # absent, or of another version: measured anew
        return None


def write_quoted(output: str, quoted: Quoted) -> None:
    """Keep it as cost.json."""
    storage.put_bytes(run_uri(output, "cost.json"), json.dumps(asdict(quoted), indent=2).encode() + b"\n")
