"""One start of a run, from a configuration to an exit code, in five phases: open → plan → quote → solve → finish."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError, FlashrayError
from flashray.memory import freed_memory_kept
from flashray.pipeline import attempt_markers, budget, run_record, summary
from flashray.pipeline.calibrate import cost_key, measure_cost
from flashray.pipeline.clean import orphans_of
from flashray.pipeline.cost import CostModel, Quoted, predict_plan, write_quoted
from flashray.pipeline.lease import held
from flashray.pipeline.open_run import Run, open_run
from flashray.pipeline.others import copy_others, read_others
from flashray.pipeline.outputs import Layout
from flashray.pipeline.plan import (
    SEVERITY,
    finish_plan,
    found_again,
    packing_of,
    severities,
    without,
    workload,
    write_plan,
)
from flashray.pipeline.problems import NAMED, first_errors, problems_uri, write_problems
from flashray.pipeline.progress import Progress, clock
from flashray.pipeline.quarantine import nfe_under_way
from flashray.pipeline.ray_session import STOPPED, RaySession, ray_session
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_folder import page_uri, run_uri
from flashray.pipeline.run_page import write_pages
from flashray.pipeline.solve import solve_units
from flashray.pipeline.storage_needed import storage_needed
from flashray.pipeline.units import index
from flashray.shown import shown

log = logging.getLogger(__name__)


def restore_archive(config: RunConfig) -> int:
    """Run the job, or what is missing of it, by a configuration that `run_config.check` has passed.

    Returns 0 when every image is restored (or, with plan_only, quoted), 1 when failed images remain. ConfigError before
    any work when the configuration is wrong (exit code 2); FlashrayError when the run had to stop (exit code 1): the
    same command continues from there.
    """
    run = open_run(config)
    if run.nothing_to_do:
        return _nothing_to_do(run)
    with _named_stop(), held(config.io.output):
        run.open_record()
        with run.tracked():
            if run.needs_cluster:
                with ray_session(run) as session:
                    plan(run, session)
                    quote(run, session)
                    if config.policy.plan_only:
                        return 0
                    solve(run, session)
            elif config.policy.plan_only:  # another start has ended since this one looked, or no image can be read
                return _nothing_to_do(run)
            finish(run)
    return verdict(run)


def plan(run: Run, session: RaySession) -> None:
    """σ̂, start step and unit of every image that has none; with a budget, starts that fit it."""
    run.models.share()
    attempt = run.status.attempts
    kept = without(run.status.plan, run.unplanned)
    before = found_again(kept, run.listing) if run.rebudgeted else SEVERITY.empty_table()
    if len(run.unplanned):
        folder = run_uri(run.output, "severity", f"{attempt:02d}")
        work = run.worker_settings(session.pools)
        with Progress("plan", len(run.unplanned)) as progress:
            found = severities(run.unplanned, folder, work, session.pools, session.quarantine, progress)
        if not found["key"].equals(run.unplanned["key"]):
            raise FlashrayError(
                f"the plan pass lost or duplicated images; delete {folder} and run the same command again"
            )
        _write_plan(run, session, pa.concat_tables([before, found]).sort_by("index"), attempt)
        storage.delete(folder)
    elif run.rebudgeted:
        _write_plan(run, session, before, attempt)


def quote(run: Run, session: RaySession) -> None:
    """Print what the plan costs, if it is new or only a quote is requested."""
    if run.unpriced:
        price(run, session, run.status.planned)
    if len(run.unplanned) or run.rebudgeted or run.unpriced:
        run.read_status()
        print(_quote(run), flush=True)
        failures = run.status.failures
        for line in first_errors(failures):
            print(shown(f"  {line}"))
        if len(failures) > NAMED:
            print(f"  … and {len(failures) - NAMED:,} more")


def solve(run: Run, session: RaySession) -> None:
    """Restore and commit the pending units."""
    run.delete_summary()
    run.keep_tracked()
    pending, began = run.status.pending, time.monotonic()
    if not len(pending):
        return
    if run.quoted is not None and run.quoted.key != cost_key(run.record["fingerprint"], session.pools):
        run.quoted = None  # measured on another machine
    units = index(pending)
    samples = run.config.io.samples
    cost_of = {one["unit_id"]: samples * one["cost"] for one in units.to_pylist()}
    planned, quarantine = run.status.planned, session.quarantine
    total, left = (samples * sum(index(rows)["cost"].to_pylist()) for rows in (planned, pending))
    expected = None
    if run.quoted is not None:
        expected = predict_plan(pending, run.slots, run.quoted.actors, run.quoted.cost).wall_seconds
    with Progress("solve", len(planned), total, lambda: nfe_under_way(quarantine, cost_of), expected) as progress:
        progress.skip(len(planned) - len(pending), total - left)
        for unit in solve_units(pending, run.worker_settings(session.pools), session.pools, quarantine):
            progress.advance(unit["images"], cost_of.pop(unit["unit_id"], 0))
    run.images_solved, run.seconds_solving = len(pending), time.monotonic() - began
    run.read_status()


def finish(run: Run) -> None:
    """Write the contact sheet, the page and summary.json, and send the same numbers to tracking."""
    status = run.status
    if len(status.pending):
        raise FlashrayError(f"{len(status.pending)} images are not committed; run the same command again")
    attempt_markers.forget(run.output)
    layout = Layout.of(run.config.io)
    if layout.sharded:  # a shard that was damaged, and a killed writer's of a plan for another budget
        for name in orphans_of(layout, status):
            storage.delete(storage.join(run.output, name))
    if run.config.io.copy_others:
        copy_others(run.config.io, run.archive.others, run.config.policy.retry_failed)
    found = summary.summarise(status, run.config.recipe.solver.steps, run.models.unavailable, run.slots, run.quoted)
    found |= summary.beside_the_images(run.archive, read_others(run.output))
    solved = run.record.get("solved", {"images": 0, "seconds": 0.0})
    solved = {"images": solved["images"] + run.images_solved, "seconds": solved["seconds"] + run.seconds_solving}
    run.record["solved"] = solved
    run.write_record()
    # of the solve passes of all starts that came to their end
    found["images_per_second"] = round(solved["images"] / solved["seconds"], 4) if solved["images"] else None
    found["wall_seconds"] = round(time.monotonic() - run.started, 3)
    with freed_memory_kept():
        write_pages(run.local_restorer(), run.config, status, found)
    run.tracker.metrics(summary.numbers(found))  # first, because a run with a summary counts as tracked
    write_problems(run.output, status)
    storage.put_bytes(run_uri(run.output, "summary.json"), run_record.dump(found))
    if run.record.pop("overwriting", None):  # only now, because until then the same command has to go on
        run.write_record()
    run.settle_tracking()
    _print_summary(run, found)


def verdict(run: Run) -> int:
    """The exit code; logs what failed and how to retry it."""
    failures = run.status.failures
    if not len(failures):
        return 0
    log.error("%d of %d images failed:", len(failures), len(run.status.plan))
    for line in first_errors(failures):
        log.error("  %s", line)
    if len(failures) > NAMED:
        more = f": {problems_uri(run.output)} names them" if storage.exists(problems_uri(run.output)) else ""
        log.error("  … and %d more%s", len(failures) - NAMED, more)
    log.error(
        "repair, replace or remove them in the archive, or leave them where the machine was to blame, and run the same "
        "command with --retry-failed"
    )
    return 1


def price(run: Run, session: RaySession, units: pa.Table) -> None:
    """Measure the cost of a step and of an image on this pool, if an earlier start has not measured it."""
    key = cost_key(run.record["fingerprint"], session.pools)
    cost: CostModel | None
    if run.quoted is not None and run.quoted.key == key:
        cost = run.quoted.cost
    else:
        cost = measure_cost(units, run.worker_settings(session.pools), session.pools, session.quarantine)
    run.quoted = Quoted(key, cost, session.pools.solver_actors) if cost else None
    if run.quoted is not None:
        write_quoted(run.output, run.quoted)


def _quote(run: Run) -> str:
    io, status = run.config.io, run.status
    needed = storage_needed(run.listing, status.planned, io.format, io.samples)
    chain = run.config.recipe.solver.steps
    return summary.quote(status, chain, run.slots, run.quoted, run.record.get("budget"), needed, io.samples)


def _write_plan(run: Run, session: RaySession, found: pa.Table, attempt: int) -> None:
    """Write the plan of an attempt; for a quote or a budget, its cost is measured first."""
    if attempt == 0 or run.rebudgeted:
        run.record.pop("budget", None)
        attempt_markers.forget(run.output)  # of the units of a plan for another budget
    actors = session.pools.solver_actors

    def planned() -> pa.Table:
        return finish_plan(found, run.schedule, run.config, attempt, actors)

    rows = planned()
    units = rows.filter(pc.is_valid(rows["unit_id"]))
    wanted = run.requested.policy.budget and "budget" not in run.record
    if len(units) and (run.requested.policy.plan_only or wanted):
        price(run, session, units)
    if len(units) and wanted:
        if run.quoted is None:
            raise ConfigError(
                "the cost of the plan could not be measured, so no budget can be kept; leave the budget out"
            )
        sound = found.filter(pc.equal(found["status"], "ok"))
        run.record["budget"] = budget.fit(
            lambda scale: workload(sound, run.schedule, budget.scaled(run.requested, scale).recipe)[0],
            run.quoted.cost,
            packing_of(run.requested, actors),
            run.requested,
        )
        rows = planned()
    run.delete_summary()
    write_plan(run.output, attempt, rows)
    run.write_record()  # after the plan: a budget in run.json says that its plan is there
    run.read_status()


def _nothing_to_do(run: Run) -> int:
    if run.requested.policy.plan_only:
        print(_quote(run))
        return 0
    print("nothing to do: every unit is committed")
    run.catch_up()
    return verdict(run)


@contextmanager
def _named_stop() -> Iterator[None]:
    """Add to an error of the store in the driver what to do next."""
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        raise FlashrayError(STOPPED.format(error)) from error


def _print_summary(run: Run, found: dict[str, Any]) -> None:
    part = f"this start took {run.images_solved:,} of them " if run.images_solved < found["restored"] else ""
    print(
        f"{found['restored']:,} of {found['images']:,} images restored, {found['mean_nfe'] or 0:.1f} NFE an image "
        f"(full chain: {run.config.recipe.solver.steps:,}), {part}in {clock(found['wall_seconds'])}"
    )
    quality = summary.table(found)
    if quality:
        print(quality)
    for metric, why in run.models.unavailable.items():
        print(f"{metric} is empty: {why}")
    learned = run.config.recipe.fusion.name == "learned"
    scored = run.config.io.references is not None
    for line in summary.remarks(found, problems_uri(run.output), learned, scored):
        print(shown(line))
    print(f"restored images: {run.output}")
    print(f"page:            {page_uri(run.output)}")
    if run.record.get("mlflow"):
        tracked = run.record["mlflow"]
        print(f"MLflow:          {tracked.get('serve') or tracked['url'] or 'not there yet'}", flush=True)
