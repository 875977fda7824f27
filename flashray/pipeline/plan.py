"""The plan pass: the severity encoder runs once on each image; σ̂, window starts and cost are stored as Parquet."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch

from flashray import storage
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline.cluster import Pools, blocks, waves
from flashray.pipeline.decoding import batches, decode_photos, kept_parameters, most_pixels
from flashray.pipeline.load import load
from flashray.pipeline.pixel_budget import PixelBudget
from flashray.pipeline.progress import Progress
from flashray.pipeline.quarantine import reason, watched
from flashray.pipeline.run_config import RunConfig, images_per_shard
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import conformed, own_names, parquet, read_table
from flashray.pipeline.units import Packing, unit_ids
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.pipeline.workload import STARTS, Workload, touched_of
from flashray.recipe import Recipe
from flashray.schedule import NoiseSchedule

# One row an image; `width` and `height` are the file's, upright
PLAN = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),  # with the length, where in its shard: `Place`
        ("length", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixels", pa.int64()),  # of the padded image, as the networks see it
        ("windows", pa.int32()),
        ("sigma_hat", pa.float64()),  # root mean square over the windows
        ("window_sigma", pa.list_(pa.float32())),  # σ̂ of each window, 0 where it is spared; null without encoder
        ("touched", pa.bool_()),  # false: nothing of D(z) would reach the restored image
        ("residual", pa.bool_()),  # false: nothing is added to its pixels, and if not touched it is the given one
        ("sigma_true", pa.float64()),
        ("start_step", pa.int32()),  # the latest of the windows': the number of updates
        ("starts", STARTS),
        ("nfe", pa.float64()),  # Σ_k s_k / K
        ("fallback", pa.bool_()),
        ("unit_id", pa.string()),
        ("noise_std", pa.float64()),
        ("parameters", pa.string()),  # JSON of the degradation's scalar parameters, or of its mask's URI
        ("estimated", pa.bool_()),  # some of these numbers were not given, and are the severity encoder's
        ("status", pa.string()),  # ok, error, or gone: it failed before, and is no longer in the archive
        ("error", pa.string()),
    ]
)
# The result of the severity pass for one image
SEVERITY = pa.schema(
    [
        ("index", pa.int64()),
        *(PLAN.field(name) for name in ("key", "uri", "offset", "length", "width", "height", "pixels", "windows")),
        *(PLAN.field(name) for name in ("sigma_hat", "window_sigma", "touched", "residual", "sigma_true")),
        *(PLAN.field(name) for name in ("noise_std", "parameters", "estimated", "status", "error")),
    ]
)
_ADDED = ("touched", "residual")  # columns that plans and shards of earlier versions lack; null is true
CHUNK_BYTES = 64 * 2**20  # of the files of a chunk, unless one is larger: they travel together
KEEP_EVERY = 60.0  # seconds between two shards of a severity pass under way
log = logging.getLogger(__name__)


class SeverityActor:
    """An actor of the severity pool: one loaded chunk in, one row of `SEVERITY` an image out."""

    def __init__(self, work: WorkerSettings, quarantine: Any) -> None:
        self.restorer, self.quarantine = work.restorer(), quarantine
        self.budget = PixelBudget()
        self.io, self.batch = work.config.io, work.config.resources.severity_batch

    def __call__(self, table: pa.Table) -> pa.Table:
        (chunk,) = table.to_pylist()
        rows: list[dict[str, Any]] = [
            {name: chunk[name][i] for name in ("index", "key", "uri", "offset", "length", "error")}
            for i in range(len(chunk["key"]))
        ]
        with watched(self.quarantine, f"the severity of {chunk['unit_id']}") as watch:
            for indices, given_up in watch.parts(chunk["key"]):
                part = [i for i in indices if rows[i]["error"] is None]
                try:
                    if given_up:
                        raise given_up
                    self.estimate(chunk, rows, part)
                except Exception as error:  # becomes the error of the part's rows
                    log.exception("%s", chunk["unit_id"])
                    why = reason(error)
                    for i in part:
                        rows[i]["error"] = why
        for row in rows:
            row["status"] = "ok" if row["error"] is None else "error"
        return pa.Table.from_pylist(rows, schema=SEVERITY)

    @torch.no_grad()
    def estimate(self, chunk: dict[str, Any], rows: list[dict[str, Any]], indices: Sequence[int]) -> None:
        """Decode, measure and estimate these images of the chunk, and fill in their rows."""
        for part in batches(self.restorer, chunk, rows, indices, self.batch, self.io, self.budget):
            try:
                with self.budget.take(most_pixels(rows, part)):
                    self.estimate_batch(chunk, rows, part)
            except Exception as error:  # becomes the error of the images of this size alone
                log.exception("%s", chunk["unit_id"])
                why = reason(error)
                for i in part:
                    rows[i]["error"] = rows[i]["error"] or why

    def estimate_batch(self, chunk: dict[str, Any], rows: list[dict[str, Any]], indices: Sequence[int]) -> None:
        """The same of images of one size."""
        restorer = self.restorer
        for photos, sound in decode_photos(restorer, chunk, rows, indices, "given", self.io):
            for photo, i in zip(photos, sound, strict=True):
                rows[i] |= {"noise_std": photo.noise_std, "estimated": photo.estimated}
                rows[i]["parameters"] = kept_parameters(photo, chunk["given"][i])
            if not restorer.start.uses_encoder:
                continue
            measured = restorer.measure(photos)
            found = restorer.estimate(measured)
            for i, sigma, sigma_K in zip(sound, found.sigma_hat_B.tolist(), found.start_sigma_BK.tolist(), strict=True):
                rows[i] |= {"sigma_hat": sigma, "window_sigma": sigma_K}
            scored = restorer.measurer.simulated or self.io.references  # the score needs ẑ
            if found.spared_BK is not None and not scored:
                spared_B, residual_B = found.spared_BK.all(dim=1).tolist(), found.residual_B.tolist()
                for i, spared, residual in zip(sound, spared_B, residual_B, strict=True):
                    rows[i] |= {"touched": not spared, "residual": residual}
            if measured.x_BCHW is not None and found.z_hat_BCHW is not None:
                true = restorer.true_sigma(found.z_hat_BCHW, measured.x_BCHW)
                for i, sigma in zip(sound, true.double().tolist(), strict=True):
                    rows[i]["sigma_true"] = sigma


def chunks(listing: pa.Table, size: int) -> pa.Table:
    """One row a chunk of at most `size` images, fewer where their files are large.

    Chunks depend on the listing alone, so that σ̂ is the same in each pass.
    """
    listing = listing.combine_chunks()
    place, bytes_before = np.arange(len(listing)), np.append(0, np.cumsum(listing["size"].to_numpy()))[:-1]
    full = np.diff(bytes_before // CHUNK_BYTES, prepend=0) != 0
    offsets = pa.array(np.append(np.flatnonzero((place % size == 0) | full), len(listing)), pa.int32())
    names = pa.array([f"chunk-{number:08d}" for number in range(len(offsets) - 1)], pa.string())
    lists = {
        name: pa.ListArray.from_arrays(offsets, listing[name].combine_chunks())
        for name in ("index", "key", "uri", "offset", "length", "given", "noise_std", "refused")
    }
    return pa.table({"unit_id": names, **lists})


def severities(
    listing: pa.Table, folder: str, work: WorkerSettings, pools: Pools, quarantine: Any, progress: Progress
) -> pa.Table:
    """The severity pass over a listing: a table of `SEVERITY` in the listing's order.

    Results are stored as shards in `folder` about once a minute and at the end, and an interrupted pass continues from
    there.
    """
    todo = chunks(listing, work.config.resources.severity_batch)
    again = "delete it, and the same command estimates its images again"
    names = own_names(folder, r"\d+\.parquet")
    needed = [name for name in SEVERITY.names if name not in _ADDED]
    shards = [read_table(storage.join(folder, name), SEVERITY, again, needed) for name in names]
    known = pa.concat_tables([SEVERITY.empty_table(), *shards])
    # what failed is tried again: its file may have been repaired since
    known = _placed(known.filter(pc.equal(known["status"], "ok")), listing)
    if len(todo):  # a chunk is estimated whole
        keys = todo["key"].combine_chunks()
        there = pc.is_in(keys.flatten(), known["key"].combine_chunks()).to_numpy(False)
        todo = todo.filter(pa.array(~np.logical_and.reduceat(there, keys.offsets.to_numpy()[:-1])))
        known = known.filter(pc.invert(pc.is_in(known["key"], todo["key"].combine_chunks().flatten())))
    progress.skip(len(known))

    fresh: list[pa.Table] = []
    kept = len(shards)
    saved_at = time.monotonic()
    for table in (table for wave in waves(todo) for table in estimate_all(wave, work, pools, quarantine)):
        fresh.append(table)
        progress.advance(len(table))
        if time.monotonic() - saved_at > KEEP_EVERY:
            storage.put_bytes(storage.join(folder, f"{kept:08d}.parquet"), parquet(pa.concat_tables(fresh)))
            known, fresh, kept, saved_at = pa.concat_tables([known, *fresh]), [], kept + 1, time.monotonic()
    if fresh:  # what comes next may refuse the plan, such as a budget that is too small
        storage.put_bytes(storage.join(folder, f"{kept:08d}.parquet"), parquet(pa.concat_tables(fresh)))
    return pa.concat_tables([known, *fresh]).sort_by("index")


def _placed(known: pa.Table, listing: pa.Table) -> pa.Table:
    """The latest results of images that are in the listing, with their places in it.

    The archive may have grown since they were kept, and chunks that were half known estimated again.
    """
    known = known.filter(pc.is_in(known["key"], listing["key"].combine_chunks()))
    if pc.count_distinct(known["key"]).as_py() < len(known):
        latest = {key: row for row, key in enumerate(known["key"].to_pylist())}
        known = known.take(pa.array(sorted(latest.values())))
    index = listing["index"].take(pc.index_in(known["key"], listing["key"].combine_chunks()))
    return known.set_column(0, SEVERITY.field("index"), index)


def estimate_all(todo: pa.Table, work: WorkerSettings, pools: Pools, quarantine: Any) -> Iterator[pa.Table]:
    """Tables of `SEVERITY` of these chunks, as the pool's actors finish them."""
    arguments = {"work": work, "quarantine": quarantine}
    actors = min(pools.severity_actors, len(todo))
    dataset = (
        ray.data.from_arrow(blocks(todo))
        .map_batches(load, batch_size=1, batch_format="pyarrow", **pools.io, fn_kwargs=arguments)
        .map_batches(
            SeverityActor,
            batch_size=1,
            batch_format="pyarrow",
            **pools.severity,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=4),
        )
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield table.cast(SEVERITY)


def finish_plan(found: pa.Table, schedule: NoiseSchedule, config: RunConfig, attempt: int, actors: int = 1) -> pa.Table:
    """The plan of an attempt: start steps from the severities, and units. Rows of units first, then the unreadable.

    `found` has rows of `SEVERITY`; `schedule` is the recipe's (respaced) chain; so many `actors` will share the units.
    """
    sound = found.filter(pc.equal(found["status"], "ok"))
    broken = found.filter(pc.equal(found["status"], "error"))
    load, fallback = workload(sound, schedule, config.recipe)
    order, unit = packing_of(config, actors)(load)
    columns = {
        "start_step": pa.array(load.start_step, pa.int32()),
        "starts": load.as_maps(),
        "nfe": pa.array(load.evaluations / load.windows),
        "fallback": pa.array(fallback),
    }
    for name, values in columns.items():
        sound = sound.append_column(name, values)
    planned = sound.take(pa.array(order)).append_column("unit_id", unit_ids(attempt, unit))
    return pa.concat_tables([conformed(planned, PLAN), conformed(broken, PLAN)])


def workload(sound: pa.Table, schedule: NoiseSchedule, recipe: Recipe) -> tuple[Workload, npt.NDArray[np.bool_]]:
    """(the workload of readable images, [n] whether a window of them falls back to the full chain), in their order."""
    windows, pixels = (sound[name].to_numpy().astype(np.int64) for name in ("windows", "pixels"))
    if recipe.start.uses_encoder and len(sound):
        sigma = pa.concat_arrays(sound["window_sigma"].chunks).flatten().cast(pa.float64()).to_numpy(False)
    else:
        sigma = np.full(windows.sum(), np.nan)
    step, fallback = recipe.start.start_step(torch.from_numpy(sigma.copy()), schedule, recipe.solver.guided)
    load = Workload.of_starts(step.numpy(), windows, pixels, touched_of(sound))
    first = np.cumsum(windows) - windows
    return load, np.logical_or.reduceat(fallback.numpy(), first) if len(first) else fallback.numpy()


def packing_of(config: RunConfig, actors: int) -> Packing:
    """The packing of a run."""
    resources, io = config.resources, config.io
    return Packing(resources.unit_images, resources.slots, actors, io.samples, images_per_shard(io))


def found_again(plan: pa.Table, listing: pa.Table) -> pa.Table:
    """The severity pass's results, taken from a plan that was made from them: rows of `SEVERITY` in listing order."""
    rows = plan.append_column("index", pc.index_in(plan["key"], listing["key"].combine_chunks()).cast(pa.int64()))
    return rows.select(SEVERITY.names).cast(SEVERITY).sort_by("index")


def plan_path(output: str, attempt: int) -> str:
    return run_uri(output, "plan", f"plan-{attempt:02d}.parquet")


def write_plan(output: str, attempt: int, plan: pa.Table) -> None:
    """Store the plan of an attempt. It is created once and never replaced, so that every commit has its plan.

    FlashrayError when there is another plan of this attempt, of a driver that took over.
    """
    if not storage.create_if_absent(plan_path(output, attempt), parquet(plan)):
        raise FlashrayError(f"another driver has planned {output} meanwhile; run the same command again")


def read_plans(output: str) -> list[pa.Table]:
    """The plan of each attempt; ConfigError when one is damaged, missing, or of another version."""
    lost = "put it back, or choose another output"
    names = own_names(run_uri(output, "plan"), r"plan-\d+\.parquet")
    for attempt in range(len(names)):
        if (path := plan_path(output, attempt)) != run_uri(output, "plan", names[attempt]):
            raise ConfigError(f"{path} is gone, and {names[attempt]} is there; {lost}")
    needed = [name for name in PLAN.names if name not in _ADDED]
    return [read_table(plan_path(output, attempt), PLAN, lost, needed) for attempt in range(len(names))]


def gone(keys: Sequence[str]) -> pa.Table:
    """The plan of images that failed before and are no longer in the archive."""
    return conformed(pa.table({"key": pa.array(keys, pa.string()), "status": ["gone"] * len(keys)}), PLAN)


def latest_rows(plans: Sequence[pa.Table]) -> pa.Table:
    """Each image's row of the last plan that has it, without those that are gone."""
    latest = PLAN.empty_table()
    for plan in plans:
        latest = pa.concat_tables([without(latest, plan), plan])
    return latest.filter(pc.not_equal(latest["status"], "gone"))


def without(plan: pa.Table, other: pa.Table) -> pa.Table:
    """The rows of images that `other` does not name."""
    return plan.filter(pc.invert(pc.is_in(plan["key"], other["key"])))
