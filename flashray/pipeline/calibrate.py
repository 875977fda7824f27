"""Measure the cost model: a few seconds of the run's solver actors, on images of the run's plan."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import encode_png, open_image
from flashray.pipeline.cluster import Pools
from flashray.pipeline.cost import CostModel
from flashray.pipeline.load import load
from flashray.pipeline.solve import SolverActor, rows_of
from flashray.pipeline.units import index
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.pipeline.workload import Integers, workload_of
from flashray.schedule import NoiseSchedule

SECONDS = 2.0  # of trials for each number of filled slots; a trial that has begun is finished
_TRIALS = (3, 16)  # trials, at least and at most
LARGE = 6  # windows to a side of the cutting that says what a megapixel costs
_TOGETHER = 16  # CPU actors that are timed, at most
log = logging.getLogger(__name__)


def cost_key(fingerprint: Mapping[str, Any], pools: Pools) -> dict[str, Any]:
    """What the seconds depend on: recipe, weights, slots and precision through the fingerprint, and the machine."""
    kinds = {name for node in ray.nodes() for name in node["Resources"] if name.startswith("accelerator_type:")}
    return {
        "fingerprint": fingerprint["sha256"],
        "device": pools.device,
        "threads": pools.threads,
        "accelerators": sorted(kinds),
    }


def measure_cost(plan: pa.Table, work: WorkerSettings, pools: Pools, quarantine: Any) -> CostModel | None:
    """Start solver actors as the solve pass will, and time them; None, with a warning, if no image can be solved.

    On a GPU one actor is timed. Actors on CPUs are timed together, because they share caches and memory, and the costs
    are their means. The plan's rows belong to units.
    """
    began = time.perf_counter()
    count = min(pools.solver_actors, _TOGETHER) if pools.device == "cpu" else 1
    actors = [ray.remote(Calibrator).options(**pools.solver).remote(work, quarantine) for _ in range(count)]
    try:
        ray.get([actor.ready.remote() for actor in actors])
        start_up = time.perf_counter() - began
        unit = sample(plan, work)
        measured = ray.get([actor.measure.remote(of_actor(unit, n)) for n, actor in enumerate(actors)])
        return CostModel(**mean(measured), start_up_seconds=start_up, samples=work.config.io.samples)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, ImageError):
            raise
        log.warning("the cost of this plan could not be measured: %s", error.cause)
        return None
    except ray.exceptions.ActorDiedError:
        log.warning("the cost of this plan could not be measured: its actor died while it solved a sample")
        return None
    finally:
        for actor in actors:
            ray.kill(actor)


def mean(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each figure over the actors, for the same numbers of filled slots."""
    each = {name: [one[name] for one in measured] for name in measured[0]}
    means: dict[str, Any] = {name: np.mean(values, axis=0).tolist() for name, values in each.items()}
    return means | {"filled": each["filled"][0], "step_seconds": tuple(means["step_seconds"])}


def sample(plan: pa.Table, work: WorkerSettings) -> pa.Table:
    """One unit that fills the slots with images from the whole plan, and the steps' `visits`, as a table.

    `visits[i]` windows of the plan are updated at step i. The first image is the plan's largest.
    """
    load, slots = workload_of(plan), work.config.resources.slots
    places = ((np.arange(slots) + 0.5) / slots * len(plan)).astype(np.int64)
    places[0] = load.windows.argmax() if load.windows.max() > 1 else places[0]
    rows = plan.take(pa.array(places))
    for name, values in {"unit_id": pa.array(["calibration"] * slots), "touched": pa.array([True] * slots)}.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    counts = np.bincount(load.steps, weights=load.counts).astype(np.int64)
    visits = np.cumsum(counts[::-1])[::-1][1:]
    unit = rows_of(rows, index(rows), work)
    # an image may be there several times, and images of a unit are told apart by their keys
    keys = [f"{n} {key}" for n, key in enumerate(unit["key"][0].as_py())]
    unit = unit.set_column(unit.column_names.index("key"), "key", pa.array([keys], pa.list_(pa.string())))
    return unit.append_column("visits", pa.array([visits.tolist()], pa.list_(pa.int64())))


def of_actor(unit: pa.Table, number: int) -> pa.Table:
    """The unit under a name of its own: the quarantine takes work begun twice for one that killed its worker."""
    names = pa.array([f"calibration {number}"])
    return unit.set_column(unit.column_names.index("unit_id"), "unit_id", names)


class TrialActor(SolverActor):
    """A solver actor whose images start at the unit's `start_step`, in all of their windows or in the first one.

    Each is restored once.
    """

    all_windows = True

    def __init__(self, work: WorkerSettings, quarantine: Any) -> None:
        super().__init__(work, quarantine, durable=False)
        self.samples = 1

    def window_starts(self, unit: dict[str, Any], i: int, windows: int) -> Tensor:
        active = torch.arange(windows) < (windows if self.all_windows else 1)
        return torch.where(active, unit["start_step"][i], 0)


class Calibrator:
    """A solver actor that runs parts of chains and times them.

    It gives units to the `SolverActor` of the solve pass, so that the figures include everything that is done to an
    image: the engine's seconds are those of the commits, and the rest of a unit's time is counted separately. Of large
    photos it takes cuttings of one window, and one larger cutting that says what a megapixel costs.
    """

    def __init__(self, work: WorkerSettings, quarantine: Any) -> None:
        self.actor = TrialActor(work, quarantine)
        self.work, self.quarantine = work, quarantine
        self.schedule = self.actor.restorer.schedule

    def ready(self) -> None:
        """Returns when the models are loaded."""

    def measure(self, unit: pa.Table) -> dict[str, Any]:
        """The fields of a `CostModel` but for the start-up, from the table of `sample`; ImageError if no image can."""
        visits = np.array(unit["visits"][0].as_py(), np.int64)
        (loaded,) = load(unit.drop_columns("visits"), self.work, self.quarantine).to_pylist()
        torch.set_num_threads(self.work.threads)  # in a run, loading is a separate task with its own threads
        slots = self.work.config.resources.slots
        filled = tuple(numbers_filled(slots))
        large = self.cut(loaded, slice(1), LARGE)
        loaded = self.cut(loaded, slice(None), 1)
        self.trial(loaded, slots, self.schedule, min(1, len(visits)))  # warm-up: the first call is slow
        decode, other = (seconds / slots for seconds in self.trial(loaded, slots, self.schedule, 0))
        steps = [self.step_seconds(loaded, count, visits, decode) if len(visits) else 0.0 for count in filled]
        found = {
            "filled": filled,
            "step_seconds": tuple(steps),
            "decode_seconds": decode,
            "other_seconds": other,
            "window_pixels": self.pixels(loaded),
        }
        return found | self.megapixel_seconds(large, visits, found)

    def megapixel_seconds(self, large: dict[str, Any], visits: Integers, window: Mapping[str, Any]) -> dict[str, float]:
        """What each million pixels beyond one window costs; `window` has the figures of images of one window."""
        megapixels = (self.pixels(large) - window["window_pixels"]) / 1e6
        if megapixels <= 0:
            return {}
        decode, other = self.trial(large, 1, self.schedule, 0)
        step = 0.0
        if len(visits):
            self.actor.all_windows = False
            step = self.step_seconds(large, 1, visits, decode, least=1) - window["step_seconds"][0]
            self.actor.all_windows = True
        beyond = {
            "step_megapixel": step,
            "decode_megapixel": decode - window["decode_seconds"],
            "other_megapixel": other - window["other_seconds"],
        }
        return {name: max(seconds, 0.0) / megapixels for name, seconds in beyond.items()}

    def cut(self, unit: dict[str, Any], images: slice, windows: int) -> dict[str, Any]:
        """Some of the unit's images, each cut to at most so many windows to a side; smaller ones as they are."""
        restorer = self.actor.restorer
        unit = {name: value[images] if isinstance(value, list) else value for name, value in unit.items()}
        most = windows * restorer.frame.side
        if restorer.measurer.simulated:  # an image of which there is a measurement, such as 126 pixels of 128 by 3
            family = restorer.degradation
            most = min(family.image_size(family.measurement_size((most, most))))
        sides = {"data": most, "mask_data": most, "reference_data": windows * restorer.prior.sample_size}
        for i, size in enumerate(zip(unit["height"], unit["width"], strict=True)):
            if restorer.frame.fit != "whole" or max(size) <= most:
                continue
            for name, side in sides.items():
                if unit.get(name) and unit[name][i] is not None:
                    unit[name][i] = centre(unit[name][i], side)
            unit["height"][i], unit["width"][i] = (min(length, most) for length in size)
        return unit

    def pixels(self, unit: dict[str, Any]) -> int:
        """Of the unit's first image, padded, as the networks see it."""
        restorer = self.actor.restorer
        height, width = restorer.grid.padded_size(restorer.image_size((unit["height"][0], unit["width"][0])))
        return height * width

    def step_seconds(
        self, loaded: dict[str, Any], count: int, visits: Integers, decode: float, least: int = _TRIALS[0]
    ) -> float:
        """A batched step's time with `count` slots filled: the median of trials over the parts that the plan visits.

        The machine has just ended one pool and started another, which disturbs single trials.
        """
        # the period of the solver's rule in steps; a trial takes whole periods
        period = getattr(self.actor.restorer.solver, "every", 1)
        length = min(2 * period, len(visits))
        spent, taken, means = 0.0, 0, []
        for number, share in enumerate(evenly(_TRIALS[1])):
            schedule, steps = part(self.schedule, visits, share, length)
            seconds = max(self.trial(loaded, count, schedule, steps)[0] - count * decode, 0.0)
            spent, taken = spent + seconds, taken + steps
            means.append(seconds / steps)
            if spent > SECONDS and number + 1 >= least:
                break
            # longer trials, because each has a cost besides its steps
            length = min(period * max(1, int(SECONDS / 2 * taken / max(spent, 1e-9) / period)), len(visits))
        return statistics.median(means)

    def trial(self, loaded: dict[str, Any], count: int, schedule: NoiseSchedule, steps: int) -> tuple[float, float]:
        """(the engine's seconds, the other seconds) of `count` images that take `steps` steps to the schedule's end."""
        self.actor.restorer.schedule = schedule
        unit = {name: value[:count] if isinstance(value, list) else value for name, value in loaded.items()}
        began = time.perf_counter()
        (solved,) = self.actor(pa.Table.from_pylist([unit | {"start_step": [steps] * count}])).to_pylist()
        wall = time.perf_counter() - began
        done = [row for row in solved["rows"] if row["seconds"] is not None]
        if not done:
            raise ImageError(solved["rows"][0]["error"])
        engine = sum(row["seconds"] for row in done) * count / len(done)
        return engine, max(wall - engine, 0.0)


def centre(data: bytes, side: int) -> bytes:
    """The middle of an image file, at most `side` pixels to a side, as PNG; a broken file as it is."""
    try:
        x = open_image(data).pixels
    except ImageError:
        return data
    height, width = min(x.shape[1], side), min(x.shape[2], side)
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return encode_png(x[:, top : top + height, left : left + width])


def numbers_filled(slots: int) -> list[int]:
    """The numbers of filled slots to be timed: all of them, a quarter, a sixteenth … and one."""
    numbers = {1, slots}
    while slots > 1:
        numbers.add(slots)
        slots //= 4
    return sorted(numbers)


def evenly(count: int) -> Iterator[float]:
    """Numbers in (0, 1) whose first n are spread evenly for any n: ½, ¼, ¾, ⅛, … (van der Corput 1935)."""
    for number in range(1, count + 1):
        bits = f"{number:b}"[::-1]
        yield int(bits, 2) / 2 ** len(bits)


def part(schedule: NoiseSchedule, visits: Integers, share: float, length: int) -> tuple[NoiseSchedule, int]:
    """A part of the chain with its start step: `length` steps around the step below which `share` of the work lies.

    Every step keeps its own timestep and noise levels. One more step is added on top, except at the top of the whole
    chain, because a start there would be a start from pure noise.
    """
    below = np.cumsum(visits) / visits.sum()
    middle = int(np.searchsorted(below, share))
    bottom = min(max(middle - length // 2, 0), len(visits) - length)
    rows = slice(bottom, bottom + length + 1)
    values = (schedule.timesteps[rows], schedule.alphas_cumprod[rows], schedule.alphas_cumprod_prev[rows])
    return NoiseSchedule(*values), length
