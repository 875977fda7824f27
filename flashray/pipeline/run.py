"""One run of the job, from a configuration to an exit code: plan what is not planned, solve what is not solved."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from flashray import storage
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline import attempt_markers as attempts
from flashray.pipeline import budget, summary
from flashray.pipeline import run_record as rundir
from flashray.pipeline.archive import list_archive
from flashray.pipeline.bench import Bench, start_of
from flashray.pipeline.calibrate import cost_key, measure_cost
from flashray.pipeline.cluster import Pools, await_nodes, cause_of, connect, data_settings, size_pools
from flashray.pipeline.cost import CostModel, Quoted, read_quoted, write_quoted
from flashray.pipeline.lease import held
from flashray.pipeline.models import Models, load_models
from flashray.pipeline.plan import chain_lengths, finish, found_again, packing_of, severities, write_plan
from flashray.pipeline.precision import choose_precision
from flashray.pipeline.progress import Progress, clock
from flashray.pipeline.quarantine import nfe_under_way, start_board
from flashray.pipeline.run_config import ReconstructConfig, to_dict, to_yaml
from flashray.pipeline.run_sheet import make_sheet, to_png
from flashray.pipeline.run_status import State
from flashray.pipeline.slots import choose_slots
from flashray.pipeline.solve import solve_units
from flashray.pipeline.worker_settings import Work
from flashray.tracking import Tracker

log = logging.getLogger(__name__)
_STOPPED = "the run stopped: {}. What is committed stays, and the same command goes on from there"
_NAMED = 5  # failed images in the last message
_KEPT = ("contact_sheet.png", "summary.json")  # what tracking keeps of the run directory


def reconstruct(config: ReconstructConfig) -> int:
    """Run the job, or what is missing of it.

    Args:
        config: checked by `flashray.pipeline.run_config.check`.

    Returns:
        0 when every image is restored (or, with plan_only, quoted); 1 when failed images remain.

    Raises:
        ConfigError: before any work, when something is wrong with what was asked (exit code 2).
        FlashrayError: when the run had to stop; the same command goes on from there (exit code 1).
    """
    started = time.monotonic()
    for place in (config.archive, config.output, config.manifest, config.references):
        if place is not None:
            storage.check(place)
    models = load_models(config)
    listing = list_archive(config)
    if config.overwrite is not None:
        with held(config.output):
            rundir.erase(config.output, *(["severity_encoder"] if models.registered else []))
    state = State.read(config.output)
    failed = state.failures["key"].to_pylist()
    record = rundir.open_run(config, models.identity(), listing, set(failed))
    if models.registered is not None:
        record["registered"] = {"severity_encoder": models.registered.uri}
    run = Run(config, models, record, started)

    if state.attempts:
        again = failed if config.retry_failed else []
        unplanned = listing.filter(pc.is_in(listing["key"], pa.array(again, pa.string())))
    else:
        unplanned = listing
    rebudgeted = run.rebudgeted(state)
    unsolved = not config.plan_only and (len(state.pending) or not run.finished)
    unpriced = config.plan_only and len(state.pending) and run.quoted is None
    if not len(unplanned) and not (rebudgeted or unsolved or unpriced):
        if config.plan_only:
            print(run.quote(state))
            return 0
        print("nothing to do: every unit is committed")
        run.catch_up()
        return run.verdict(state)
    with _what_to_do_next(), held(config.output), run.tracked() as tracker:
        models.share()
        if not config.plan_only:
            run.reopen()
        if len(unplanned) or len(state.pending):
            with run.cluster() as (pools, board):
                if rebudgeted:
                    run.plan(found_again(state.plan, listing), 0, pools, board)
                if len(unplanned):
                    run.plan(run.look(unplanned, state.attempts, pools, board), state.attempts, pools, board)
                if unpriced:
                    run.price(state.planned, pools, board)
                if len(unplanned) or rebudgeted or unpriced:
                    state = State.read(config.output)
                    print(run.quote(state), flush=True)
                if config.plan_only:
                    return 0
                run.keep(tracker)
                run.solve(state, pools, board)
                state = State.read(config.output)
        run.finish(state, tracker)
    return run.verdict(state)


@contextmanager
def _what_to_do_next() -> Iterator[None]:
    """Say it with an error of the store that the driver itself runs into."""
    try:
        yield
    except OSError as error:
        raise FlashrayError(_STOPPED.format(error)) from error


class Run:
    """The steps of one start of a run.

    Args:
        asked, models: what was asked, loaded.
        record: run.json.
        started: when this start began, on the monotonic clock.

    Attributes:
        config: what was asked, with the starts that its budget leaves once it is planned.
    """

    def __init__(self, asked: ReconstructConfig, models: Models, record: dict[str, Any], started: float) -> None:
        self.models, self.record, self.started = models, record, started
        self.asked = self._with_choices(asked)
        self.images_solved, self.seconds_solving = 0, 0.0
        self.quoted = read_quoted(asked.output)

    def _with_choices(self, asked: ReconstructConfig) -> ReconstructConfig:
        """What was left to the machine is what run.json says of it, if it does."""
        precision = self.record.get("precision", "auto") if asked.precision == "auto" else asked.precision
        return dataclasses.replace(asked, precision=precision, slots=asked.slots or self.record.get("slots", 0))

    @property
    def config(self) -> ReconstructConfig:
        return budget.settled(self.asked, self.record.get("budget"))

    def rebudgeted(self, state: State) -> bool:
        """Whether the plan was made for another budget, and has to be made anew.

        Raises:
            ConfigError: when a unit is committed that keeps to the other budget.
        """
        here, there = budget.asked(self.asked), (self.record.get("budget") or {}).get("asked", {})
        if not state.attempts or here == there:
            return False
        if state.units or state.attempts > 1:
            raise ConfigError(
                f"output {self.asked.output} holds a run planned with the budget {there or 'unlimited'} and partly "
                f"done, and this start asks for {here or 'unlimited'}: choose another --output, or give that budget"
            )
        return True

    @property
    def finished(self) -> bool:
        """Whether an earlier start came as far as the summary."""
        return storage.exists(self._place("summary.json"))

    def reopen(self) -> None:
        """Take the summary away until it is true again: a run that is killed now is finished by the next start."""
        storage.delete(self._place("summary.json"))

    @contextmanager
    def cluster(self) -> Iterator[tuple[Pools, Any]]:
        """A Ray cluster, pools that fit it, and a board; what stops the work becomes a message on how to go on."""
        own = connect()
        try:
            await_nodes(self.config)
            pools = size_pools(self.config, self.record.get("threads"), self.models.weights)
            if self.record.get("device") not in (None, pools.device):
                raise ConfigError(
                    f"output {self.config.output} holds a run made on {self.record['device']}, and this start would "
                    f"use {pools.device}: the last digits would differ. Choose another --output, or --device"
                )
            self.record |= {"device": pools.device, "threads": pools.threads}
            # both are kept, for an image's last digits depend on the precision and on the size of its batch
            if self.asked.precision == "auto":
                self.record["precision"] = choose_precision(pools)
                self.asked = self._with_choices(self.asked)
            if not self.asked.slots:
                self.record["slots"] = choose_slots(self._work(pools.device, pools.threads), pools)
                self.asked = self._with_choices(self.asked)
            rundir.write_record(self.config.output, self.record)
            with data_settings():
                yield pools, start_board()
        except ray.exceptions.RayError as error:
            # the frames of the error hold the actor pools, and those their CPUs, for as long as anybody holds the error
            error.__cause__ = error.__context__ = error.__traceback__ = None
            gc.collect()
            raise FlashrayError(_STOPPED.format(cause_of(error))) from error
        finally:
            if own:
                ray.shutdown()

    @contextmanager
    def tracked(self) -> Iterator[Tracker]:
        """A tracker that learns truthfully how the run ended; a quote is not tracked."""
        config = self.config
        settings = dataclasses.replace(config.mlflow, enabled=config.mlflow.enabled and not config.plan_only)
        tracker = Tracker(settings, config.output)
        weights = {name: value for name, value in self.record["fingerprint"].items() if name.startswith("weights.")}
        tracker.start(
            name=f"{config.degradation.name} {config.start.mode} {config.solver.name}",
            params=rundir.flatten(to_dict(config)) | weights | {"images": self.record["archive"]["images"]},
            tags={
                "flashray.method": f"{config.start.mode}({config.solver.name})",
                "flashray.fingerprint": self.record["fingerprint"]["sha256"],
                "flashray.output": config.output,
            },
            config_yaml=to_yaml(config),
        )
        with tracker.told_the_end():
            yield tracker
        self.keep(tracker)

    def catch_up(self) -> None:
        """Tell MLflow what it missed of a run that is done: it was away, or the driver was killed at the very end."""
        tracker = Tracker(self.config.mlflow, self.config.output)
        if tracker.behind():
            with held(self.config.output):
                tracker.catch_up(_KEPT, "FINISHED")
                self.keep(tracker)

    def keep(self, tracker: Tracker) -> None:
        """Note the tracked run in run.json."""
        if tracker.record is not None:
            rundir.note_tracked(self.config.output, self.record, tracker.record)

    def look(self, listing: pa.Table, attempt: int, pools: Pools, board: Any) -> pa.Table:
        """The severities of these images."""
        folder = self._severity(attempt)
        work = self._work(pools.device, pools.threads)
        with Progress("plan", len(listing)) as progress:
            found = severities(listing, folder, work, pools, board, progress)
        if not found["key"].equals(listing["key"]):
            raise FlashrayError(f"the plan pass lost or doubled images; delete {folder} and run the same command again")
        return found

    def plan(self, found: pa.Table, attempt: int, pools: Pools, board: Any) -> None:
        """Write the plan of an attempt; where a quote or a budget is asked for, what it costs is measured first."""
        schedule = self.asked.solver.chain(self.models.prior.schedule)
        if attempt == 0:
            self.record.pop("budget", None)
            attempts.forget(self.asked.output)  # of units of other images, in a plan for another budget

        def plan() -> pa.Table:
            return finish(found, schedule, self._work(pools.device, pools.threads), attempt, pools.solver_actors)

        planned = plan()
        units = planned.filter(pc.is_valid(planned["unit_id"]))
        wanted = budget.asked(self.asked) and "budget" not in self.record
        if len(units) and (self.asked.plan_only or wanted):
            self.price(units, pools, board)
        if len(units) and wanted and self.quoted:
            sound = found.filter(pc.equal(found["status"], "ok"))
            fitted = budget.fit(
                lambda scale: chain_lengths(sound, schedule, start_of(budget.scaled(self.asked, scale)))[0],
                self.quoted.cost,
                packing_of(self.asked, pools.solver_actors),
                self.asked,
            )
            self.record["budget"] = budget.entry(self.asked, fitted)
            planned = plan()
        write_plan(self.asked.output, attempt, planned)
        rundir.write_record(
            self.asked.output, self.record
        )  # after the plan: a budget without its plan would be believed
        storage.delete(self._severity(attempt))

    def price(self, units: pa.Table, pools: Pools, board: Any) -> None:
        """Measure what a step and an image cost on this pool, if that is not known from an earlier start."""
        key = cost_key(self.record["fingerprint"], pools)
        if self.quoted is not None and self.quoted.key == key:
            cost: CostModel | None = self.quoted.cost
        else:
            cost = measure_cost(units, self._work(pools.device, pools.threads), pools, board)
        self.quoted = Quoted(key, cost, pools.solver_actors) if cost else None
        if self.quoted is not None:
            write_quoted(self.asked.output, self.quoted)

    def quote(self, state: State) -> str:
        """What the plan costs, for people."""
        return summary.quote(state, self.models.chain, self.asked.slots, self.quoted, self.record.get("budget"))

    def solve(self, state: State, pools: Pools, board: Any) -> None:
        """Solve and commit the pending units."""
        pending, began = state.pending, time.monotonic()
        if not len(pending):
            return
        if self.quoted is not None and self.quoted.key != cost_key(self.record["fingerprint"], pools):
            self.quoted = None  # of another machine
        work = self._work(pools.device, pools.threads)
        totals = pending.group_by("unit_id").aggregate([("nfe", "sum")])
        nfe_of = dict(zip(totals["unit_id"].to_pylist(), totals["nfe_sum"].to_pylist(), strict=True))
        with Progress(
            "solve", len(state.planned), _nfe(state.planned), lambda: nfe_under_way(board, nfe_of)
        ) as progress:
            progress.skip(len(state.planned) - len(pending), _nfe(state.planned) - _nfe(pending))
            for unit in solve_units(pending, work, pools, board):
                progress.advance(unit["images"], nfe_of.pop(unit["unit_id"], 0))
        self.images_solved, self.seconds_solving = len(pending), time.monotonic() - began

    def finish(self, state: State, tracker: Tracker) -> None:
        """Contact sheet, summary.json, and the same numbers into tracking."""
        if len(state.pending):
            raise FlashrayError(f"{len(state.pending)} images are not committed; run the same command again")
        attempts.forget(self.asked.output)
        found = summary.summarise(state, self.models.chain, self.models.unavailable, self.asked.slots, self.quoted)
        speed = self.images_solved / self.seconds_solving if self.images_solved else None
        found["images_per_second"] = speed and round(speed, 4)  # of this start's solve pass
        found["wall_seconds"] = round(time.monotonic() - self.started, 3)
        work = self._work("cpu", self.record.get("threads", 1))
        sheet = make_sheet(Bench(work, self.models.prior, self.models.encoder), state)
        if sheet is not None:
            storage.put_bytes(self._place("contact_sheet.png"), to_png(sheet))
        tracker.metrics(summary.numbers(found))  # first, since with a summary the run counts as told
        storage.put_bytes(self._place("summary.json"), rundir.dump(found))
        for name in _KEPT:
            tracker.file(name)
        tracker.settle()
        self.keep(tracker)
        self._tell(found)

    def verdict(self, state: State) -> int:
        """The exit code, with a word on what failed and how to retry it."""
        failures = state.failures
        if not len(failures):
            return 0
        log.error("%d of %d images failed:", len(failures), len(state.plan))
        for row in failures.slice(0, _NAMED).to_pylist():
            log.error("  %s: %s", row["key"], row["error"])
        if len(failures) > _NAMED:
            log.error("  … and %d more: %s names them", len(failures) - _NAMED, self._place("summary.json"))
        log.error("repair or replace them in the archive, and run the same command with --retry-failed")
        return 1

    def _work(self, device: str, threads: int) -> Work:
        start = dataclasses.replace(self.config.start, severity_encoder=self.models.encoder_place)
        config = dataclasses.replace(self.config, start=start)
        return Work.of(config, device, threads, self.models.prior.sample_size, self.models.lpips)

    def _severity(self, attempt: int) -> str:
        return self._place("severity", f"{attempt:02d}")

    def _place(self, *parts: str) -> str:
        return storage.join(self.config.output, *parts)

    def _tell(self, found: dict[str, Any]) -> None:
        print(
            f"{found['restored']:,} of {found['images']:,} images restored, {found['mean_nfe'] or 0:.1f} NFE an image "
            f"(full chain: {self.models.chain:,}), in {clock(found['wall_seconds'])}"
        )
        quality = summary.table(found)
        if quality:
            print(quality)
        for metric, reason in self.models.unavailable.items():
            print(f"{metric} is empty: {reason}")
        print(f"reconstructions: {self._place('reconstructions')}")
        print(f"contact sheet:   {self._place('contact_sheet.png')}")
        if self.record.get("mlflow"):
            tracked = self.record["mlflow"]
            print(f"MLflow:          {tracked.get('serve') or tracked['url'] or 'not there yet'}", flush=True)


def _nfe(plan: pa.Table) -> int:
    return pc.sum(plan["nfe"]).as_py() or 0
