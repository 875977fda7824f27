"""The first phase of a start: read the output, refuse what does not fit, and decide what is left to do."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline import budget, run_record
from flashray.pipeline.archive import Archive, is_hidden, read_archive, write_index
from flashray.pipeline.cluster import Pools, refuse_absent_gpu
from flashray.pipeline.commit import committed_units, read_commits
from flashray.pipeline.cost import read_quoted
from flashray.pipeline.damage import missing_and_changed, restored_files
from flashray.pipeline.lease import held
from flashray.pipeline.models import Models, load_models
from flashray.pipeline.others import copied_names, others_copied
from flashray.pipeline.outputs import Layout, image_of
from flashray.pipeline.plan import gone, read_plans, write_plan
from flashray.pipeline.run_config import RunConfig, flatten, to_dict, to_yaml
from flashray.pipeline.run_folder import PAGE, refuse_old_layout, run_uri
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.worker_settings import WorkerSettings, hashes
from flashray.restorer import Restorer
from flashray.schedule import NoiseSchedule
from flashray.shown import first_of, storable
from flashray.tracking import Tracker, TrackingConfig

log = logging.getLogger(__name__)
_TRACKED_FILES = ("contact_sheet.png", "summary.json", f"../{PAGE}")  # artifacts in tracking, from the run folder


def open_run(config: RunConfig) -> Run:
    """Everything that a start needs, read and checked; writes nothing (`overwrite` deletes the old run).

    ConfigError when the models, the archive or the output do not fit the configuration.
    """
    started, io = time.monotonic(), config.io
    for uri in (io.archive, io.output, io.manifest, io.references):
        if uri is not None:
            storage.check(uri)
    if io.references is not None and not storage.exists(io.references):
        raise ConfigError(f"references {io.references} does not exist; give the folder of the clean images")
    models = load_models(config)
    config = models.config
    predicted = models.encoder.parameter_names if models.encoder else ()
    archive = read_archive(config, predicted, _taken_before(config))
    if config.policy.overwrite is not None:
        _erase(config, models, archive)
    status = RunStatus.read(io.output)
    limit, taken = config.policy.limit, len(status.plan)
    if limit is not None and taken > limit and len(status.pending):
        raise ConfigError(
            f"limit is {limit}, and the run in {io.output} has planned {taken} images; give at least so many, leave "
            "--limit out to restore all, or choose another output"
        )
    failed = status.failures["key"].to_pylist()
    record = run_record.examine(config, models.identity(), archive.images, set(failed))
    if record is None:
        models.warn_of_prior()
    return Run(config, models, archive, status, record, started)


def _taken_before(config: RunConfig) -> pa.ChunkedArray | None:
    """Keys of the images that the run in the output has taken; asked only where a limit leaves others out."""
    limited = config.policy.limit is not None and config.policy.overwrite is None
    output = config.io.output
    if not limited or run_record.read_record(output) is None or not run_record.planned(output):
        return None
    return run_record.read_listing(output)["key"]


def _erase(config: RunConfig, models: Models, archive: Archive) -> None:
    """Delete the run in the output, unless this same command began it and was interrupted."""
    output = config.io.output
    refuse_old_layout(output)
    if run_record.read_record(output) is None:
        return
    with held(output):
        record = run_record.read_record(output)
        if record is None:
            return
        if run_record.goes_on(output, record, models.identity(), archive.images):
            log.warning("an interrupted run of this command is there, which began with --overwrite; it goes on")
            return
        refuse_absent_gpu(config.resources.device)
        plans, commits = read_plans(output), read_commits(output, committed_units(output))
        names = Layout.of_record(output, record).files(*plans, commits) | copied_names(output)
        there = {name: storable(image_of(name)) in names for name in restored_files(output) if name != PAGE}
        strange = [name for name, own in there.items() if not own and not is_hidden(name)]
        if strange:
            raise ConfigError(
                f"output {output} holds files that no run wrote, such as {strange[0]!r}: move them away, or choose "
                "another output; nothing is deleted"
            )
        names = {name for name, own in there.items() if own}
        run_record.erase(output, names, *(["severity_encoder"] if models.registered else []))


class Run:
    """One start of a run.

    Args:
        requested: the configuration as the user gave it.
        record: run.json, or None where the output holds no run yet.
        started: when this start began, on the monotonic clock.

    Attributes:
        listing: the archive's images.
        config: the effective one: `requested` with the choices in run.json and the starts that fit the budget.
        unplanned: rows of the listing that this start has to plan.
        rebudgeted: whether the plan was made for another budget, and has to be made again.
        unpriced: whether the plan's cost has to be measured for a quote.
    """

    def __init__(
        self,
        requested: RunConfig,
        models: Models,
        archive: Archive,
        status: RunStatus,
        record: dict[str, Any] | None,
        started: float,
    ) -> None:
        self.models, self.archive, self.status, self.started = models, archive, status, started
        self.listing = archive.images
        self.record = record or {}
        self.output = requested.io.output
        self.requested = requested
        self.take_choices()
        self.images_solved, self.seconds_solving = 0, 0.0
        self.quoted = read_quoted(self.output)
        self.tracker = Tracker(self._tracking_settings(), self.output, run_uri(self.output))
        self._decide()

    def _decide(self) -> None:
        """What is left to do, as the output is now."""
        self.unplanned = self._unplanned()
        self.rebudgeted = self._rebudgeted()
        self.unpriced = bool(self.requested.policy.plan_only and len(self.status.pending) and self.quoted is None)

    @property
    def config(self) -> RunConfig:
        return budget.effective(self.requested, self.record.get("budget"))

    @property
    def slots(self) -> int:
        return self.requested.resources.slots

    @property
    def schedule(self) -> NoiseSchedule:
        """The recipe's (respaced) chain."""
        return self.requested.recipe.solver.chain(self.models.prior.schedule)

    @property
    def nothing_to_do(self) -> bool:
        """Whether earlier starts did everything that is requested."""
        unsolved = not self.requested.policy.plan_only and (len(self.status.pending) or not self._finished)
        left = not self.requested.policy.plan_only and self._left()
        return not (len(self.unplanned) or left or self.rebudgeted or unsolved or self.unpriced)

    @property
    def needs_cluster(self) -> bool:
        """Whether there is anything to plan or to solve; otherwise only the last phase is missing."""
        return bool(len(self.unplanned) or len(self.status.pending))

    def take_choices(self) -> None:
        """Replace automatic choices (precision, slots) by those in run.json, where it has them."""
        self.requested = run_record.with_choices(self.requested, self.record)

    def open_record(self) -> None:
        """Write run.json where it is new, and decide again: the caller holds the lease, and another start may have
        ended since this one looked.
        """
        before = self.status
        self.read_status()
        fresh = run_record.examine(
            self.requested, self.models.identity(), self.listing, set(self.status.failures["key"].to_pylist())
        )
        pins = self.models.pinned
        self.record = run_record.open_record(self.requested, fresh, self.models.identity(), self.listing, pins)
        if self.archive.index is not None:
            write_index(self.output, self.archive.index)
            self.archive = dataclasses.replace(self.archive, index=None)  # as large as the listing
        if self.models.registered is not None:
            self.record["registered"] = {"severity_encoder": self.models.registered.uri}
        self.take_choices()
        if not self.requested.policy.plan_only:
            self._let_go()
        if (self.status.attempts, self.status.units) != (before.attempts, before.units):
            self._decide()

    def _let_go(self) -> None:
        """Plan images that failed and have left the archive as gone; `examine` has refused others that left."""
        if left := self._left():
            log.warning("%d images that failed are no longer in the archive (%s)", len(left), first_of(left))
            self.delete_summary()
            write_plan(self.output, self.status.attempts, gone(left))
            self.read_status()

    def delete_summary(self) -> None:
        """A run with a summary counts as finished; it is written again at the end."""
        storage.delete(run_uri(self.output, "summary.json"))

    def write_record(self) -> None:
        run_record.write_record(self.output, self.record)

    def read_status(self) -> None:
        """Read again what is planned and committed; where nothing is new, the commits that were read stay."""
        now = RunStatus.read(self.output)
        if (now.attempts, now.units) != (self.status.attempts, self.status.units):
            self.status = now

    def worker_settings(self, pools: Pools) -> WorkerSettings:
        """The settings that are sent to the workers of these pools."""
        return self._settings(pools.device, pools.threads)

    def local_restorer(self) -> Restorer:
        """A restorer of this run in the driver, on the CPU."""
        settings = self._settings("cpu", self.record.get("threads", 1))
        return settings.restorer(self.models.prior, self.models.encoder)

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Track this start and how it ended; a quote is not tracked."""
        config = self.config
        recipe = config.recipe
        weights = {name: value for name, value in self.record["fingerprint"].items() if name.startswith("weights.")}
        self.tracker.start(
            name=f"{recipe.degradation.name} {recipe.start.mode} {recipe.solver.name}",
            params=flatten(to_dict(config)) | weights | {"images": self.record["archive"]["images"]},
            tags={
                "flashray.method": f"{recipe.start.mode}({recipe.solver.name})",
                "flashray.fingerprint": self.record["fingerprint"]["sha256"],
                "flashray.output": self.output,
            },
            config_yaml=to_yaml(config),
        )
        with self.tracker.told_the_end():
            yield
        self.keep_tracked()

    def settle_tracking(self) -> None:
        """Send the run folder's events to MLflow, within the configured patience."""
        for name in _TRACKED_FILES:
            self.tracker.file(name)
        self.tracker.settle()
        self.keep_tracked()

    def catch_up(self) -> None:
        """Send to MLflow what it lacks of a finished run, because it was away or the driver was killed at the end."""
        if self.tracker.behind():
            with held(self.output):
                self.tracker.catch_up(_TRACKED_FILES, "FINISHED")
                self.keep_tracked()

    def keep_tracked(self) -> None:
        """Note the tracked run in run.json."""
        if self.tracker.record is not None:
            run_record.note_tracked(self.output, self.record, self.tracker.record)

    def _tracking_settings(self) -> TrackingConfig:
        tracking = self.requested.tracking
        return dataclasses.replace(tracking, enabled=tracking.enabled and not self.requested.policy.plan_only)

    @property
    def _finished(self) -> bool:
        """Whether an earlier start wrote the summary, and copied the other files where that is requested."""
        copied = not self.requested.io.copy_others or others_copied(
            self.output, self.archive.others, self.requested.policy.retry_failed
        )
        return copied and storage.exists(run_uri(self.output, "summary.json"))

    def _left(self) -> list[str]:
        """The planned images that the archive no longer has."""
        planned = self.status.plan["key"]
        return planned.filter(pc.invert(pc.is_in(planned, self.listing["key"].combine_chunks()))).to_pylist()

    def _unplanned(self) -> pa.Table:
        if not self.status.attempts:
            return self.listing
        again = self.status.failures["key"].to_pylist() if self.requested.policy.retry_failed else []
        again += self._damaged() + self._new()["key"].to_pylist()
        return self.listing.filter(pc.is_in(self.listing["key"], pa.array(again, pa.string())))

    def _new(self) -> pa.Table:
        """Rows of the listing that no plan has."""
        planned = self.status.plan["key"].combine_chunks()
        return self.listing.filter(pc.invert(pc.is_in(self.listing["key"], planned)))

    def _damaged(self) -> list[str]:
        """Keys of the images that were restored and whose files are gone or damaged; a quote does not look."""
        policy = self.requested.policy
        if policy.plan_only or not self.status.units:
            return []
        sizes = restored_files(self.output)
        parts = missing_and_changed(Layout.of(self.requested.io), self.status.results, sizes, policy.verify)
        for keys, what in zip(parts, ("missing", "damaged"), strict=True):
            if keys:
                log.warning("%d restored images are %s and are made again: %s", len(keys), what, first_of(keys))
        return [key for keys in parts for key in keys]

    def _rebudgeted(self) -> bool:
        """Whether the budget, or what it has to last for, has changed since the plan.

        ConfigError if a unit of that plan is committed already.
        """
        here, there = self.requested.policy.budget, (self.record.get("budget") or {}).get("requested", {})
        new = len(self._new())
        if not self.status.attempts or (here == there and not (here and new)):
            return False
        if set(pc.unique(self.status.planned["unit_id"]).to_pylist()) & self.status.units:
            was, now = ("".join(f"{n} {v:g}" for n, v in one.items()) or "no budget" for one in (there, here))
            why = f"{new} images are new: restore them to another output"
            if here != there:
                why = f"this start asks for {now}: choose another output, or give that budget"
            raise ConfigError(f"output {self.output} holds a run planned with {was} and partly done, and {why}")
        return True

    def _settings(self, device: str, threads: int) -> WorkerSettings:
        config = self.config
        start = dataclasses.replace(config.recipe.start, severity_encoder=self.models.encoder_source)
        run_id = self.record.get("fingerprint", {}).get("sha256", "")
        weights = hashes(self.models.prior, self.models.encoder)
        config = config.replaced("recipe", start=start)
        return WorkerSettings.of(config, device, threads, self.models.lpips, run_id, weights)
