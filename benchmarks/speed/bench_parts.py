"""The parts of `make bench`, each a function from what they share to (flat numbers, rows of a table).

Those that need the job's own code import it when they are run: the others need no Ray.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compute_cell import scores_of, with_grey
from benchmarks.observations import Observed, first_of
from benchmarks.one_pass import restore_in_one_pass
from benchmarks.speed import device_options as options
from benchmarks.speed import timing as speed
from benchmarks.speed.bench_setup import Part, SpeedSetup
from flashray.active_image import Job, make_problem
from flashray.engine import advance
from flashray.measurement import Measurement
from flashray.restored import Estimate
from flashray.restorer import Restorer
from flashray.solvers import make_solver

UTILIZATION_IMAGES = 512
Row = dict[str, Any]
Measured = tuple[dict[str, float], list[Row]]


def _engine(setup: SpeedSetup) -> Measured:
    """The engine against the plain loop; `engine_over_loop` is the best ratio at a batch of at least 8."""
    config = setup.config
    rows: list[Row] = list(
        speed.engine_over_loop(*setup.engine_arguments, setup.timed_jobs, config.slots, repeats=config.repeats)
    )
    large = [row for row in rows if row["slots"] >= 8] or rows
    return {"engine_over_loop": max(float(row["ratio"]) for row in large)}, rows


def _flops(setup: SpeedSetup) -> Measured:
    """Achieved FLOP/s, and where a step's time goes."""
    solver, jobs = make_solver("latent_dps", {"dc_step": 1.0}), setup.jobs([setup.config.steps] * 8)
    prior, degradation, schedule = setup.engine_arguments
    arguments = (prior, degradation, solver, schedule, jobs)
    rows: list[Row] = []
    for kind in ("float32", "bf16"):
        with speed.precision(setup.prior, kind):
            found = speed.flops_fraction(*arguments, repeats=setup.config.repeats)
            seconds = speed.components(*arguments, steps=setup.config.steps)
        shares = {f"{name}_ms": 1000 * value for name, value in seconds.items()}
        rows.append({"precision": kind, **found, **shares})
    return {"flops_fraction": float(rows[0]["fraction"])}, rows


def _quality(setup: SpeedSetup) -> Measured:
    """Recipes against the full chain and against ẑ decoded, and their seconds against the plain loop's full chain."""
    config, observed, prior = setup.config, setup.observed, setup.prior
    x = setup.photos.x_NCHW
    count = min(config.full_images, len(x))
    with speed.precision(prior, "bf16"):
        full = setup.full_chain.restore_measured(_parts(first_of(observed, count)))
    decoded = restore_in_one_pass("autoencoder", observed, setup.restorer)
    candidates: dict[str, tuple[list[Tensor], float, Row]] = {
        "ẑ decoded": (decoded, 0.0, {}),
        "full chain": (with_grey(full.images, x), float(len(prior.schedule)), {}),
    }
    for name, restorer in setup.restorers.items():
        candidates[name] = _restore(setup, restorer)
    scores = {
        name: scores_of(setup.restorer, images, x[: len(images)], setup.lpips)
        for name, (images, *_) in candidates.items()
    }
    rows: list[Row] = []
    for name, (_, nfe, timed) in candidates.items():
        few = {f"{metric}_{count}": _mean(values[:count]) for metric, values in scores[name].items()}
        all_of_them = {metric: _mean(values) for metric, values in scores[name].items()}
        rows.append({"name": name, "nfe": nfe, **({} if name == "full chain" else all_of_them), **few, **timed})
    estimate, chain, *recipes = rows
    good = [row for row in recipes if _better(row, estimate, "") and _better(row, chain, f"_{count}")]
    best = min(good or recipes, key=lambda row: row["seconds_over_full_loop"])
    found = {"seconds_over_full_loop": best["seconds_over_full_loop"]}
    if good:
        found["nfe_at_full_quality"] = min(row["nfe"] for row in good)
    return found, rows


def _restore(setup: SpeedSetup, restorer: Restorer) -> tuple[list[Tensor], float, Row]:
    """(restorations, mean NFE, seconds) of a recipe."""
    config, solver = setup.config, restorer.recipe.solver
    with speed.precision(setup.prior, "bf16"):
        found = restorer.restore_measured(_parts(setup.observed))
    jobs: list[Job] = []
    for measured, estimate in _parts(setup.observed):
        step_B, _ = restorer.start_steps(estimate.sigma_hat_B)
        jobs += restorer.begin(measured, estimate.z_hat_BCHW, estimate.sigma_hat_B, step_B)
    jobs.sort(key=lambda job: -job.start_step)
    timed = speed.recipe_over_full_loop(
        setup.prior,
        restorer.degradation,
        restorer.solver,
        restorer.schedule,
        jobs,
        solver.eta,
        restorer.slots,
        "bf16",
        loop_steps=config.steps,
        repeats=config.repeats,
    )
    seconds = {name: timed[name] for name in ("recipe_seconds", "loop_seconds")}
    images = with_grey(found.images, setup.photos.x_NCHW)
    return images, statistics.fmean(found.nfe), {**seconds, "seconds_over_full_loop": timed["ratio"]}


def _parts(observed: Sequence[Observed]) -> list[tuple[Measurement, Estimate]]:
    return [(one.measured, one.estimate) for one in observed]


def _better(row: Row, other: Row, suffix: str) -> bool:
    """In PSNR, and in LPIPS where its weights are at hand."""
    if row[f"psnr{suffix}"] <= other[f"psnr{suffix}"]:
        return False
    return f"lpips{suffix}" not in row or row[f"lpips{suffix}"] < other[f"lpips{suffix}"]


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _slot_utilization(setup: SpeedSetup) -> Measured:
    """512 images of mixed severity, an actor of 8 slots: in units as the job packs them, and as they are listed."""
    from benchmarks.packing import mixed_steps
    from flashray.pipeline.units import Packing
    from flashray.pipeline.workload import Workload

    steps, slots = mixed_steps(UTILIZATION_IMAGES), 8
    order, unit = Packing(None, slots=slots, actors=1)(Workload.of_windows(steps))
    packed = [steps[order[unit == number]].tolist() for number in np.unique(unit)]
    listed = [steps[first : first + 32].tolist() for first in range(0, len(steps), 32)]
    rows: list[Row] = [
        {
            "units": name,
            "count": len(units),
            "slot_utilization": speed.slot_utilization(units, slots, setup.jobs, *setup.engine_arguments),
        }
        for name, units in {"packed": packed, "as listed, 32 images each": listed}.items()
    ]
    return {"slot_utilization": rows[0]["slot_utilization"]}, rows


def _pipeline(setup: SpeedSetup) -> Measured:
    """The job against the bare engine, and its quote against what it took."""
    from benchmarks.speed.pipeline_cost import pipeline_over_engine

    recipe = setup.config.recipes[0]
    few, many = setup.config.pipeline_images
    with tempfile.TemporaryDirectory() as folder:
        row = pipeline_over_engine(recipe, Path(folder), setup.restorer, setup.photos.x_NCHW, few, many)
    found = {"pipeline_over_engine": row["ratio"], "quote_error": abs(row["quote_over_actual"] - 1)}
    return found, [{"recipe": recipe, "images": many, **row}]


def _options(setup: SpeedSetup) -> Measured:
    """The first recipe with each option, one update of 8 images timed: kept is what is faster and changes no figure."""
    prior, restorer = setup.prior, setup.restorer
    chain, eta = restorer.schedule, restorer.recipe.solver.eta
    jobs = setup.jobs([1] * 8)
    seed_B, problem = make_problem(prior, restorer.degradation, jobs)
    z, last_B = torch.stack([job.z_start for job in jobs]).to(setup.device), torch.full((8,), len(chain) - 1)

    def scores() -> dict[str, float]:
        found = restorer.restore_measured(_parts(setup.observed))
        x = setup.photos.x_NCHW
        values = scores_of(restorer, with_grey(found.images, x), x, setup.lpips)
        return {metric: _mean(values[metric]) for metric in values}

    def update() -> Tensor:
        return advance(prior, restorer.solver, chain, problem, z, last_B, seed_B, eta)

    rows = options.compare(options.make_options(setup.config.options), prior, update, scores, setup.config.repeats)
    return {}, rows


def _packing(setup: SpeedSetup) -> Measured:
    """Ten million images packed in a process of its own, and a pool of 1024 slots simulated."""
    from benchmarks.dispatch import makespan_over_ideal
    from benchmarks.packing import measure_packing, mixed_steps

    found = measure_packing(10_000_000)
    over_ideal = makespan_over_ideal(mixed_steps(1_000_000), 1024)
    numbers = {
        "makespan_over_ideal_1024": over_ideal,
        "pack_10m_seconds": found["seconds"],
        "pack_10m_gb": found["gb"],
    }
    return numbers, [{**found, "makespan_over_ideal_1024": over_ideal}]


def _throughput(setup: SpeedSetup) -> Measured:
    """NFE a second and peak memory of Latent-DPS at every batch size and precision."""
    config = setup.config
    return {}, list(speed.throughput(*setup.engine_arguments, setup.timed_jobs, config.slots, repeats=config.repeats))


PARTS: dict[Part, Callable[[SpeedSetup], Measured]] = {
    "packing": _packing,
    "slot_utilization": _slot_utilization,
    "engine": _engine,
    "throughput": _throughput,
    "flops": _flops,
    "quality": _quality,
    "options": _options,
    "pipeline": _pipeline,
}
