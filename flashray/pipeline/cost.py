"""The cost of a plan: a model of the solver's seconds, measured on the run's actors, and its prediction."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flashray import storage
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.simulation import Pool, simulate
from flashray.pipeline.slot_utilization import batch_seconds, slot_steps, slot_utilization
from flashray.pipeline.units import Floats, Integers, Packing, dearest_first, unit_costs, unit_starts


@dataclass(frozen=True)
class CostModel:
    """Seconds of a solver actor.

    Attributes:
        filled: numbers of filled slots, ascending from 1, for which a batched step was timed.
        step_seconds: seconds of one batched step with that many slots filled.
        decode_seconds: seconds of an image after its last step (decoding); the engine counts them as the image's.
        other_seconds: seconds of an image outside the engine: measuring, severity encoder, scoring.
        start_up_seconds: from requesting an actor until its models are loaded.
    """

    filled: tuple[int, ...]
    step_seconds: tuple[float, ...]
    decode_seconds: float
    other_seconds: float
    start_up_seconds: float

    def steps(self, slots: int) -> Floats:
        """[slots] seconds of a batched step with 1 … `slots` filled, interpolated linearly between measurements."""
        return np.interp(np.arange(1, slots + 1), self.filled, self.step_seconds)

    @property
    def nfe_seconds(self) -> float:
        """An NFE's share of a batched step with all slots filled."""
        return self.step_seconds[-1] / self.filled[-1]


@dataclass(frozen=True)
class Prediction:
    """The predicted cost of a plan.

    Attributes:
        units: number of units.
        slot_utilization: slot-steps that update an image over all slot-steps.
        solver_seconds: the predicted sum of the commits' `seconds`.
        wall_seconds: of the solve pass, from the actors' start-up to the last unit's end.
        actors: number of actors that share the units.
    """

    units: int
    slot_utilization: float
    solver_seconds: float
    wall_seconds: float
    actors: int

    @property
    def device_hours(self) -> float:
        """Hours that the actors hold their devices, idle ones at the end included."""
        return self.actors * self.wall_seconds / 3600


def predict(nfe: Integers, first: Integers, slots: int, actors: int, cost: CostModel) -> Prediction:
    """The cost of units: `nfe` in their order, and the index at which each begins (`units.unit_starts`)."""
    steps_US = slot_steps(nfe, first, slots)
    images_U = np.diff(np.append(first, len(nfe)))
    solver_U = batch_seconds(steps_US, cost.steps(slots)) + cost.decode_seconds * images_U
    dispatched = (solver_U + cost.other_seconds * images_U)[dearest_first(unit_costs(nfe, first))]
    wall = simulate(dispatched, Pool(min(actors, max(len(first), 1)), start_up=cost.start_up_seconds)).makespan
    return Prediction(len(first), slot_utilization(steps_US), float(solver_U.sum()), wall, actors)


def predict_plan(plan: pa.Table, slots: int, actors: int, cost: CostModel) -> Prediction:
    """The cost of a plan's rows that belong to units."""
    return predict(plan["nfe"].to_numpy(), unit_starts(plan["unit_id"].combine_chunks()), slots, actors, cost)


def predict_full(images: int, chain: int, slots: int, actors: int, cost: CostModel) -> Prediction:
    """The cost of the full chain for so many images."""
    nfe = np.full(images, chain, np.int64)
    _, unit = Packing(None, slots, actors)(nfe)
    return predict(nfe, np.flatnonzero(np.diff(unit, prepend=-1)), slots, actors, cost)


@dataclass(frozen=True)
class Quoted:
    """A cost model and the conditions of its measurement, as kept in the run folder.

    Attributes:
        key: what the seconds depend on; with another key they are measured again.
        actors: number of solver actors in the pool.
    """

    key: dict[str, Any]
    cost: CostModel
    actors: int

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return self.key["device"]

    @property
    def threads(self) -> int:
        """Of an actor."""
        return self.key["threads"]


def read_quoted(output: str) -> Quoted | None:
    """cost.json of a run folder, or None."""
    try:
        found = json.loads(storage.read_bytes(_uri(output)))
        curve = {name: tuple(found["cost"].pop(name)) for name in ("filled", "step_seconds")}
        cost = CostModel(**{**found["cost"], **curve})
        return Quoted(found["key"], cost, found["actors"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # absent, or of another version: measured anew
        return None


def write_quoted(output: str, quoted: Quoted) -> None:
    """Keep it as cost.json."""
    storage.put_bytes(_uri(output), json.dumps(asdict(quoted), indent=2).encode() + b"\n")


def _uri(output: str) -> str:
    return run_uri(output, "cost.json")
