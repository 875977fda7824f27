"""The solve pass: units → load → solver actors → write, one unit one row all the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from torch import Tensor

from flashray.active_image import Job
from flashray.degradations.base import alike
from flashray.images import to_uint16
from flashray.measurement import Photo
from flashray.metrics import MetricUnavailable, load_lpips
from flashray.pipeline import attempt_markers as markers
from flashray.pipeline.cluster import Pools, blocks, waves
from flashray.pipeline.commit import COMMIT
from flashray.pipeline.decoding import batches, decode_photos, decode_reference, most_pixels
from flashray.pipeline.load import load
from flashray.pipeline.pixel_budget import PixelBudget
from flashray.pipeline.quarantine import close, reason, recall, unnoted, watched
from flashray.pipeline.units import gather, index
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.pipeline.write import write

_PLANNED = ("key", "width", "height", "sigma_hat", "sigma_true", "start_step")  # of a row, before it is solved
_KEPT = ("parameters", "noise_std", "uri")  # of an image, for the writers
UNIT_COLUMNS = [*_PLANNED, *_KEPT, "offset", "length", "window_sigma", "touched", "residual"]
# A restored image as 16-bit RGB [H, W, 3], its further samples, and the file and parameters that it was made from
IMAGE = pa.struct(
    [
        ("pixels", pa.large_binary()),
        ("samples", pa.list_(pa.large_binary())),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("parameters", pa.string()),
        ("noise_std", pa.float64()),
        ("uri", pa.string()),
        ("data", pa.large_binary()),
    ]
)
SOLVED = pa.schema(
    [
        ("unit_id", pa.string()),
        ("rows", pa.list_(pa.struct(list(COMMIT)))),
        ("images", pa.list_(IMAGE)),  # null where a row has an error
    ]
)
ROWS_AT_ONCE = 256  # of an image that is rounded: bounds the memory beside it
_REPORT_EVERY = 2.0  # seconds
_REPORT_AFTER = 256  # evaluations of windows
_WORK = "solving "  # followed by a unit's id: the name of a piece of work in the quarantine
log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """An image that is ready to be solved: its position in the unit, its commit row, and what its score needs.

    It has a job for each of its samples, the first of which is scored.
    """

    position: int
    row: dict[str, Any]
    jobs: list[Job]
    shown: Tensor
    z_hat: Tensor | None
    reference: Tensor | None


class SolverActor:
    """An actor of the solver pool: one loaded unit in, one row of `SOLVED` out. No failure of an image stops it.

    `durable` says whether its attempts are recorded in the run folder.
    """

    def __init__(self, work: WorkerSettings, quarantine: Any, durable: bool = True) -> None:
        self.work, self.quarantine, self.durable = work, quarantine, durable
        self.samples = work.config.io.samples
        self.restorer, self.budget = work.restorer(), PixelBudget()
        self.lpips = None
        if work.lpips:
            try:
                self.lpips = load_lpips("vgg").to(self.restorer.device)
            except MetricUnavailable as error:  # the driver has the weights, and this machine does not
                log.warning("%s", error)

    def __call__(self, table: pa.Table) -> pa.Table:
        (unit,) = table.to_pylist()
        rows: list[dict[str, Any]] = [
            {name: unit[name][i] for name in (*_PLANNED, "error")} for i in range(len(unit["key"]))
        ]
        images: dict[int, Tensor] = {}  # the first samples
        further: dict[int, dict[int, bytes]] = {}  # the others, by their numbers
        note = partial(markers.put, self.work.config.io.output, unit["unit_id"]) if self.durable else unnoted
        with watched(self.quarantine, _WORK + unit["unit_id"], note) as watch:
            for indices, given_up in watch.parts(unit["key"]):
                try:
                    if given_up:
                        raise given_up
                    with self.budget.take(most_pixels(rows, indices)):
                        self.restore(unit, rows, indices, images, further)
                except Exception as error:  # such as out of memory or a broken operator: an error of the part's rows
                    log.exception("unit %s", unit["unit_id"])
                    why = reason(error)
                    for i in indices:
                        whole = i in images and len(further.get(i, ())) == self.samples - 1
                        if not whole and rows[i]["error"] is None:
                            rows[i]["error"] = why
        if self.durable:  # a driver that dies before the commit does not die of this unit
            markers.forgive(self.work.config.io.output, {unit["unit_id"]: watch.past.deaths + 1})
        for row in rows:
            row["status"] = "ok" if row["error"] is None else "error"
        done = [
            as_pixels(images[i])
            | {"samples": [further[i][n] for n in range(1, self.samples)]}
            | {name: unit[name][i] for name in (*_KEPT, "data")}
            if rows[i]["error"] is None
            else None
            for i in range(len(rows))
        ]
        return pa.Table.from_pylist([{"unit_id": unit["unit_id"], "rows": rows, "images": done}], schema=SOLVED)

    def restore(
        self,
        unit: dict[str, Any],
        rows: list[dict[str, Any]],
        indices: Sequence[int],
        images: dict[int, Tensor],
        further: dict[int, dict[int, bytes]],
    ) -> None:
        """Restore the sound images of the unit at these indices into `images` and `further`; fill in their rows."""
        restorer, io = self.restorer, self.work.config.io
        sound = [i for i in indices if rows[i]["error"] is None]
        count = self.work.config.resources.severity_batch
        kept = {i for i in sound if unit["touched"][i] is False and unit["residual"][i] is False}
        changed = [i for i in sound if i not in kept]
        for batch in batches(restorer, unit, rows, sorted(kept), count, io, self.budget):
            self.keep(unit, rows, batch, images, further)
        prepared: list[Prepared] = []
        for batch in batches(restorer, unit, rows, changed, count, io, self.budget):
            for photos, among in decode_photos(restorer, unit, rows, batch, "parameters", io):
                prepared += self.prepare(unit, rows, photos, among)
        prepared.sort(key=lambda one: one.position)  # the plan's order: dearest first
        index_of = {one.jobs[0].key: one.position for one in prepared}
        jobs = [job for one in prepared for job in one.jobs]
        for solved in restorer.solve(jobs, on_step=self._reporter(unit["unit_id"])):
            i = index_of[solved.key]
            rows[i] |= {"nfe": solved.nfe, "seconds": rows[i].get("seconds", 0.0) + solved.seconds}
            rows[i]["error"] = rows[i]["error"] or solved.error
            if solved.image is None:
                continue
            if solved.sample:
                further.setdefault(i, {})[solved.sample] = as_pixels(solved.image)["pixels"]
            else:
                images[i] = solved.image
        scorable = [one for one in prepared if one.row["error"] is None and one.reference is not None]
        for scored in alike(scorable, lambda one: (images[one.position], one.jobs[0].parameters)):
            _, height, width = images[scored[0].position].shape
            most = restorer.batch_size((height, width), restorer.slots)
            for first in range(0, len(scored), most):
                self.score(scored[first : first + most], images)

    @torch.no_grad()
    def keep(
        self,
        unit: dict[str, Any],
        rows: list[dict[str, Any]],
        batch: Sequence[int],
        images: dict[int, Tensor],
        further: dict[int, dict[int, bytes]],
    ) -> None:
        """Images of one size in which the plan found nothing to restore: each is given back as it is."""
        for photos, indices in decode_photos(self.restorer, unit, rows, batch, "parameters", self.work.config.io):
            shown_BCHW = self.restorer.measure(photos).shown_BCHW.clamp(-1, 1).cpu()
            for i, image in zip(indices, shown_BCHW, strict=True):
                images[i] = image
                if self.samples > 1:
                    further[i] = dict.fromkeys(range(1, self.samples), as_pixels(image)["pixels"])
                rows[i]["nfe"] = 0.0  # and no seconds, because the solver had nothing to do

    @torch.no_grad()
    def prepare(
        self, unit: dict[str, Any], rows: list[dict[str, Any]], photos: Sequence[Photo], indices: Sequence[int]
    ) -> list[Prepared]:
        """Measure and estimate photos that are alike, those of the unit at these indices, and make start latents."""
        restorer, io = self.restorer, self.work.config.io
        references = [photo.x if restorer.measurer.simulated else None for photo in photos]
        if "reference_data" in unit:
            references = [decode_reference(restorer, unit["reference_data"][i], io.max_megapixels) for i in indices]
        measured = restorer.measure(photos)
        found = restorer.estimate(measured)
        z_hat = found.z_hat_BCHW
        sigma_hat = torch.tensor([np.nan if rows[i]["sigma_hat"] is None else rows[i]["sigma_hat"] for i in indices])
        start_BK = torch.stack([self.window_starts(unit, i, rows[i]["windows"]) for i in indices])
        jobs = restorer.begin(measured, z_hat, sigma_hat, start_BK, found.severity, self.samples)
        each = [jobs[n : n + self.samples] for n in range(0, len(jobs), self.samples)]
        shown = measured.shown_BCHW
        return [
            Prepared(i, rows[i], each[b], shown[b], None if z_hat is None else z_hat[b], _alike(references[b], shown))
            for b, i in enumerate(indices)
        ]

    def window_starts(self, unit: dict[str, Any], i: int, windows: int) -> Tensor:
        """[K] where the windows of an image begin, by the σ̂ of the plan."""
        sigma = unit["window_sigma"][i] or [np.nan] * windows
        return self.restorer.start_steps(torch.tensor(sigma, dtype=torch.float64))[0]

    @torch.no_grad()
    def score(self, batch: Sequence[Prepared], images: dict[int, Tensor]) -> None:
        """Metrics against references, into the rows: of restored images (alike), measurements and decoded estimates."""
        restorer, metrics = self.restorer, self.work.config.io.metrics
        # the plan has no σ̄ where the images are observed
        unknown = any(one.z_hat is not None and one.row["sigma_true"] is None for one in batch)
        if not metrics and not unknown:
            return
        reference = torch.stack([one.reference for one in batch if one.reference is not None]).to(restorer.device)
        candidates = {
            "": torch.stack([images[one.position] for one in batch]),
            "measurement_": torch.stack([one.shown for one in batch]),
        }
        estimates = [one.z_hat for one in batch if one.z_hat is not None]
        if estimates:
            z_hat = torch.stack(estimates)
            if metrics:
                decoded = restorer.decode(z_hat, (reference.shape[2], reference.shape[3]))
                candidates["estimate_"] = restorer.fuse(
                    decoded, [one.jobs[0] for one in batch if one.z_hat is not None]
                )
                if restorer.recipe.fusion.name != "none":
                    candidates["decoded_"] = decoded
            if unknown:
                for one, sigma in zip(batch, restorer.true_sigma(z_hat, reference).tolist(), strict=True):
                    one.row["sigma_true"] = sigma
        for name, values in restorer.score(candidates, reference, metrics, self.lpips).items():
            for one, value in zip(batch, values.tolist(), strict=True):
                one.row[name] = value

    def _reporter(self, unit_id: str) -> Callable[[int], None]:
        """An engine callback that reports the unit's evaluations so far to the quarantine every few seconds."""
        done, reported, last = 0, 0, time.monotonic()

        def on_step(count: int) -> None:
            nonlocal done, reported, last
            done += count
            # an update of a large photo reports its many batches at once
            if time.monotonic() - last > _REPORT_EVERY or done - reported > _REPORT_AFTER:
                self.quarantine.report.remote(unit_id, done)
                reported, last = done, time.monotonic()

        return on_step


def _alike(reference_CHW: Tensor | None, shown_BCHW: Tensor) -> Tensor | None:
    """The reference; None where it has another size than the image, and cannot be compared."""
    return reference_CHW if reference_CHW is not None and reference_CHW.shape == shown_BCHW.shape[1:] else None


def as_pixels(image_CHW: Tensor) -> dict[str, Any]:
    """An image in [-1, 1] as the pixels of an `IMAGE`."""
    height, width = image_CHW.shape[1:]
    pixels = np.empty((height, width, 3), np.uint16)
    for top in range(0, height, ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        pixels[rows] = to_uint16(image_CHW[:, rows]).permute(1, 2, 0).numpy()
    return {"pixels": pixels.tobytes(), "height": height, "width": width}


def solve_units(plan: pa.Table, work: WorkerSettings, pools: Pools, quarantine: Any) -> Iterator[dict[str, Any]]:
    """Solve the units of these plan rows, most expensive first; yields a row of `WRITTEN` as each is committed."""
    output, units = work.config.io.output, index(plan)
    past = markers.read(output, set(units["unit_id"].to_pylist()))
    recall(quarantine, {_WORK + unit_id: one for unit_id, one in past.items()})
    committed: set[str] = set()
    try:
        for wave in waves(units):
            for unit in _solve_wave(rows_of(plan, wave, work), work, pools, quarantine):
                committed.add(unit["unit_id"])
                yield unit
    except BaseException:
        # the units under way, and those solved and not yet committed, end because of this driver and did not fail
        begun = {
            name.removeprefix(_WORK): number for name, number in close(quarantine).items() if name.startswith(_WORK)
        }
        markers.forgive(output, {unit: number for unit, number in begun.items() if unit not in committed})
        raise


def rows_of(plan: pa.Table, units: pa.Table, work: WorkerSettings) -> pa.Table:
    """These units of `index(plan)` with all columns that the load stage needs."""
    units = gather(plan, units, UNIT_COLUMNS)
    if work.config.io.references is not None:
        keys = units["key"].combine_chunks()
        uris = pc.binary_join_element_wise(work.config.io.references.rstrip("/"), keys.flatten(), "/")
        lists = pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(keys.value_lengths())), pa.int32()), uris)
        units = units.append_column("reference_uri", lists)
    return units


def _solve_wave(units: pa.Table, work: WorkerSettings, pools: Pools, quarantine: Any) -> Iterator[dict[str, Any]]:
    arguments = {"work": work, "quarantine": quarantine}
    dataset = (
        ray.data.from_arrow(blocks(units))
        .map_batches(load, batch_size=1, batch_format="pyarrow", **pools.io, fn_kwargs=arguments)
        .map_batches(
            SolverActor,
            batch_size=1,
            batch_format="pyarrow",
            **pools.solver,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(
                size=min(pools.solver_actors, len(units)), max_tasks_in_flight_per_actor=2
            ),
        )
        .map_batches(write, batch_size=1, batch_format="pyarrow", **pools.io, fn_kwargs=arguments)
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from table.to_pylist()
