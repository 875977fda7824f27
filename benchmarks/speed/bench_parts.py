"""The parts of `make bench`, each a function from what they share to (flat numbers, rows of a table).

Those that need the job's own code import it when they are run: the others need no Ray.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measured_photos import decode_in_batches, jobs_of, run_cell, score_in_batches
from benchmarks.speed import device_options as options
from benchmarks.speed import timing as speed
from benchmarks.speed.bench_setup import Part, Room
from flashray.engine import advance, make_problem
from flashray.pipeline.run_config import ReconstructConfig
from flashray.severity import Start
from flashray.solvers import make_solver

OCCUPANCY_IMAGES = 512
Row = dict[str, Any]
Measured = tuple[dict[str, float], list[Row]]


def _engine(room: Room) -> Measured:
    """The engine against the plain loop; `engine_over_loop` is the best ratio at a batch of at least 8."""
    config = room.config
    rows: list[Row] = list(speed.engine_over_loop(*room.flight, room.timed_jobs, config.slots, repeats=config.repeats))
    large = [row for row in rows if row["slots"] >= 8] or rows
    return {"engine_over_loop": max(float(row["ratio"]) for row in large)}, rows


def _flops(room: Room) -> Measured:
    """Achieved FLOP/s, and where a step's time goes."""
    solver, jobs = make_solver("latent_dps", {"dc_step": 1.0}), room.jobs([room.config.steps] * 8)
    arguments = (room.prior, room.degradation, solver, room.prior.schedule, jobs)
    rows: list[Row] = []
    for kind in ("float32", "bf16"):
        with speed.precision(room.prior, kind):
            found = speed.flops_fraction(*arguments, repeats=room.config.repeats)
            seconds = speed.components(*arguments, steps=room.config.steps)
        shares = {f"{name}_ms": 1000 * value for name, value in seconds.items()}
        rows.append({"precision": kind, **found, **shares})
    return {"flops_fraction": float(rows[0]["fraction"])}, rows


def _quality(room: Room) -> Measured:
    """Recipes against the full chain and against ẑ decoded, and their seconds against the plain loop's full chain."""
    config, measured, prior = room.config, room.measured, room.prior
    x, count = measured.x_NCHW, min(room.config.full_images, len(measured.keys))
    full_solver = make_solver("latent_dps", {"dc_step": config.full_dc_step})
    first = measured.first(count)
    with speed.precision(prior, "bf16"):
        full = run_cell(first, prior, Start(mode="full"), full_solver, prior.schedule, slots=max(config.slots))
    assert measured.z_hat_NCHW is not None
    candidates: dict[str, tuple[Tensor, float, Row]] = {
        "ẑ decoded": (decode_in_batches(prior, measured.z_hat_NCHW).clamp(-1, 1).cpu(), 0.0, {}),
        "full chain": (full.x_NCHW, float(len(prior.schedule)), {}),
    }
    for name, recipe in room.recipes.items():
        candidates[name] = _restore(room, recipe)
    scores = {
        name: score_in_batches(x_hat, x[: len(x_hat)], room.lpips, room.device)
        for name, (x_hat, *_) in candidates.items()
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


def _restore(room: Room, recipe: ReconstructConfig) -> tuple[Tensor, float, Row]:
    """(restorations, mean NFE, seconds) of a recipe."""
    from flashray.pipeline.bench import start_of

    from flashray.pipeline.slots import CPU_SLOTS

    config, prior, measured = room.config, room.prior, room.measured
    start, chain, slots = start_of(recipe), recipe.solver.chain(prior.schedule), recipe.slots or CPU_SLOTS
    solver = make_solver(recipe.solver.name, recipe.solver.settings)
    with speed.precision(prior, "bf16"):
        found = run_cell(measured, prior, start, solver, chain, slots, recipe.solver.eta)
    jobs, _ = jobs_of(measured, prior, start, chain)
    arguments = (prior, room.degradation, solver, chain, jobs, recipe.solver.eta, slots, "bf16")
    timed = speed.recipe_over_full_loop(*arguments, loop_steps=config.steps, repeats=config.repeats)
    seconds = {name: timed[name] for name in ("recipe_seconds", "loop_seconds")}
    return found.x_NCHW, statistics.fmean(found.nfe), {**seconds, "seconds_over_full_loop": timed["ratio"]}


def _better(row: Row, other: Row, suffix: str) -> bool:
    """In PSNR, and in LPIPS where its weights are at hand."""
    if row[f"psnr{suffix}"] <= other[f"psnr{suffix}"]:
        return False
    return f"lpips{suffix}" not in row or row[f"lpips{suffix}"] < other[f"lpips{suffix}"]


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _slot_utilization(room: Room) -> Measured:
    """512 images of mixed severity, an actor of 8 slots: in units as the job packs them, and as they are listed."""
    from benchmarks.packing import mixed_steps
    from flashray.pipeline.units import Packing

    steps, slots = mixed_steps(OCCUPANCY_IMAGES), 8
    order, unit = Packing(None, slots=slots, actors=1)(steps)
    packed = [steps[order[unit == number]].tolist() for number in np.unique(unit)]
    listed = [steps[first : first + 32].tolist() for first in range(0, len(steps), 32)]
    rows: list[Row] = [
        {
            "units": name,
            "count": len(units),
            "slot_utilization": speed.slot_utilization(units, slots, room.jobs, *room.flight),
        }
        for name, units in {"packed": packed, "as listed, 32 images each": listed}.items()
    ]
    return {"slot_utilization": rows[0]["slot_utilization"]}, rows


def _pipeline(room: Room) -> Measured:
    """The job against the bare engine, and its quote against what it took."""
    from benchmarks.speed.pipeline_cost import pipeline_over_engine

    config, recipe = room.config, Path(room.config.recipes[0])
    few, many = config.pipeline_images
    command = [sys.executable, config.job, "--config", str(recipe)]
    with tempfile.TemporaryDirectory() as folder:
        row = pipeline_over_engine(
            command, Path(folder), room.recipe, room.prior, room.encoder, room.photos[1], few, many
        )
    found = {"pipeline_over_engine": row["ratio"], "quote_error": abs(row["quote_over_actual"] - 1)}
    return found, [{"recipe": recipe.stem, "images": many, **row}]


def _options(room: Room) -> Measured:
    """The first recipe with each option, one update of 8 images timed: kept is what is faster and changes no figure."""
    from flashray.pipeline.bench import start_of

    prior, recipe, measured = room.prior, room.recipe, room.measured
    solver, chain = make_solver(recipe.solver.name, recipe.solver.settings), recipe.solver.chain(prior.schedule)
    jobs = room.jobs([1] * 8)
    seed_B, problem = make_problem(prior, room.degradation, jobs)
    z, last_B = torch.stack([job.z_start for job in jobs]).to(room.device), torch.full((8,), len(chain) - 1)

    def scores() -> dict[str, float]:
        found = run_cell(measured, prior, start_of(recipe), solver, chain, 8, recipe.solver.eta)
        values = score_in_batches(found.x_NCHW, measured.x_NCHW, room.lpips, room.device)
        return {metric: _mean(values[metric]) for metric in values}

    def update() -> Tensor:
        return advance(prior, solver, chain, problem, z, last_B, seed_B, recipe.solver.eta)

    rows = options.compare(options.make_options(room.config.options), prior, update, scores, room.config.repeats)
    return {}, rows


def _packing(room: Room) -> Measured:
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


def _throughput(room: Room) -> Measured:
    """NFE a second and peak memory of Latent-DPS at every batch size and precision."""
    config = room.config
    return {}, list(speed.throughput(*room.flight, room.timed_jobs, config.slots, repeats=config.repeats))


PARTS: dict[Part, Callable[[Room], Measured]] = {
    "packing": _packing,
    "slot_utilization": _slot_utilization,
    "engine": _engine,
    "throughput": _throughput,
    "flops": _flops,
    "quality": _quality,
    "options": _options,
    "pipeline": _pipeline,
}
