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

from flashray.engine import Job, solve
from flashray.images import to_uint8
from flashray.metrics import MetricUnavailable, load_lpips, score
from flashray.pipeline import attempt_markers as attempts
from flashray.pipeline.bench import Bench
from flashray.pipeline.cluster import Pools, blocks, waves
from flashray.pipeline.commit import COMMIT
from flashray.pipeline.load import load
from flashray.pipeline.measurement import unpack_pixels
from flashray.pipeline.quarantine import close, reason, recall, unnoted, watched
from flashray.pipeline.units import gather, index
from flashray.pipeline.worker_settings import Work
from flashray.pipeline.write import write
from flashray.severity import error_std
from flashray.solvers import make_solver

UNIT_COLUMNS = ["key", "uri", "part", "sigma_hat", "sigma_true", "start_step", "noise_std", "parameters"]
SOLVED = pa.schema(
    [
        ("unit_id", pa.string()),
        ("rows", pa.list_(pa.struct(list(COMMIT)))),
        ("images", pa.list_(pa.binary())),  # 8-bit pixels [3, size, size], null where a row has an error
    ]
)
_REPORT_EVERY = 2.0  # seconds
_WORK = "solving "  # and a unit's id: a piece of work on the board
log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """An image that is ready to be solved: its place in the unit, its commit row, and what it is scored by."""

    place: int
    row: dict[str, Any]
    job: Job
    shown: Tensor
    z_hat: Tensor | None
    reference: Tensor | None


class Solver:
    """An actor of the solver pool: one loaded unit in, one row of `SOLVED` out. Nothing that an image does stops it.

    Args:
        durable: whether its attempts are noted in the run directory.
    """

    def __init__(self, work: Work, board: Any, durable: bool = True) -> None:
        self.bench, self.board, self.durable = Bench(work), board, durable
        config = work.config
        self.solver = make_solver(config.solver.name, config.solver.settings)
        self.lpips = None
        if work.lpips:
            try:
                self.lpips = load_lpips("vgg").to(self.bench.device)
            except MetricUnavailable as error:  # the driver has the weights and this machine has not
                log.warning("%s", error)

    def __call__(self, table: pa.Table) -> pa.Table:
        (unit,) = table.to_pylist()
        rows: list[dict[str, Any]] = [
            {name: unit[name][i] for name in ("key", "part", "sigma_hat", "sigma_true", "start_step", "error")}
            for i in range(len(unit["key"]))
        ]
        images: dict[int, Tensor] = {}
        note = partial(attempts.put, self.bench.work.config.output, unit["unit_id"]) if self.durable else unnoted
        with watched(self.board, _WORK + unit["unit_id"], note) as watch:
            for places, given_up in watch.parts(unit["key"]):
                try:
                    if given_up:
                        raise given_up
                    self._solve(unit, rows, places, images)
                except Exception as error:  # out of memory, a broken operator: the part's own loss, and its rows say so
                    log.exception("unit %s", unit["unit_id"])
                    why = reason(error)
                    for i in places:
                        if i not in images and rows[i]["error"] is None:
                            rows[i]["error"] = why
        for row in rows:
            row["status"] = "ok" if row["error"] is None else "error"
        pixels = [to_uint8(images[i]).numpy().tobytes() if i in images else None for i in range(len(rows))]
        return pa.Table.from_pylist([{"unit_id": unit["unit_id"], "rows": rows, "images": pixels}], schema=SOLVED)

    def _solve(
        self, unit: dict[str, Any], rows: list[dict[str, Any]], places: Sequence[int], images: dict[int, Tensor]
    ) -> None:
        """Solve the sound images in these places of the unit into `images`, by their places, and fill in their rows."""
        bench, config = self.bench, self.bench.work.config
        sound = [i for i in places if rows[i]["error"] is None]
        prepared: list[Prepared] = []
        for first in range(0, len(sound), config.severity_batch):
            prepared += self._prepare(unit, rows, sound[first : first + config.severity_batch])
        finished = solve(
            bench.prior,
            bench.measurer.degradation,
            self.solver,
            bench.schedule,
            [one.job for one in prepared],
            slots=config.slots,
            eta=config.solver.eta,
            on_step=self._reporter(unit["unit_id"]),
        )
        for solved in finished:
            place = int(solved.key)
            rows[place] |= {"nfe": solved.nfe, "seconds": solved.seconds, "error": solved.error}
            if solved.image is not None:
                images[place] = solved.image
        scored = [one for one in prepared if one.place in images and one.reference is not None]
        for first in range(0, len(scored), config.slots):
            self._score(scored[first : first + config.slots], images)

    def _prepare(self, unit: dict[str, Any], rows: list[dict[str, Any]], batch: Sequence[int]) -> list[Prepared]:
        """Measure a batch of the unit's images, look at them once, and make their start latents."""
        bench, size = self.bench, self.bench.work.size
        photos = [
            bench.photo(*(unit[name][i] for name in ("key", "pixels", "parameters", "noise_std", "mask")))
            for i in batch
        ]
        measured = bench.measure(photos)
        z_hat, _ = bench.estimate(measured.seen_BCHW)
        sigma_hat = torch.tensor([np.nan if rows[i]["sigma_hat"] is None else rows[i]["sigma_hat"] for i in batch])
        start_step = torch.tensor([rows[i]["start_step"] for i in batch])
        around = bench.no_estimate(len(batch)) if z_hat is None else z_hat
        z_start = bench.start.latent(around, sigma_hat, start_step, bench.schedule, measured.seed_B)
        prepared = []
        for b, (place, photo) in enumerate(zip(batch, photos, strict=True)):
            job = Job(
                key=str(place),
                seed=int(measured.seed_B[b]),
                y=measured.y_BCHW[b],
                parameters={name: values[b] for name, values in measured.parameters.items()},
                noise_std=photo.noise_std,
                z_start=z_start[b],
                start_step=int(start_step[b]),
            )
            reference = photo.x if bench.measurer.simulated else None
            if "reference" in unit and unit["reference"][place] is not None:
                reference = unpack_pixels(unit["reference"][place], size)
            estimate = None if z_hat is None else z_hat[b]
            prepared.append(Prepared(place, rows[place], job, measured.shown_BCHW[b], estimate, reference))
        return prepared

    @torch.no_grad()
    def _score(self, batch: Sequence[Prepared], images: dict[int, Tensor]) -> None:
        """Metrics of reconstructions, measurements and decoded estimates against the references, into the rows."""
        prior, device, metrics = self.bench.prior, self.bench.device, self.bench.work.config.metrics
        # the plan of observed images does not know σ̄
        unknown = any(one.z_hat is not None and one.row["sigma_true"] is None for one in batch)
        if not metrics and not unknown:
            return
        reference = torch.stack([one.reference for one in batch if one.reference is not None]).to(device)
        candidates = {
            "": torch.stack([images[one.place] for one in batch]),
            "measurement_": torch.stack([one.shown for one in batch]),
        }
        estimates = [one.z_hat for one in batch if one.z_hat is not None]
        if estimates:
            z_hat = torch.stack(estimates)
            if metrics:
                candidates["estimate_"] = prior.decode(z_hat)
            if unknown:
                for one, sigma in zip(batch, error_std(z_hat, prior.encode(reference)).tolist(), strict=True):
                    one.row["sigma_true"] = sigma
        for prefix, candidate in candidates.items():
            for metric, values in score(candidate.to(device), reference, self.lpips, metrics).items():
                for one, value in zip(batch, values.tolist(), strict=True):
                    one.row[prefix + metric] = value

    def _reporter(self, unit_id: str) -> Callable[[int], None]:
        """An engine callback that tells the board now and then how many NFE the unit has behind it."""
        done, last = 0, time.monotonic()

        def on_step(count: int) -> None:
            nonlocal done, last
            done += count
            if time.monotonic() - last > _REPORT_EVERY:
                self.board.report.remote(unit_id, done)
                last = time.monotonic()

        return on_step


def solve_units(plan: pa.Table, work: Work, pools: Pools, board: Any) -> Iterator[dict[str, Any]]:
    """Solve the units of these plan rows, dearest first; yields a row of `WRITTEN` as each is committed."""
    output, units = work.config.output, index(plan)
    past = attempts.read(output, set(units["unit_id"].to_pylist()))
    recall(board, {_WORK + unit_id: one for unit_id, one in past.items()})
    committed: set[str] = set()
    try:
        for wave in waves(units):
            for unit in _solve_wave(rows_of(plan, wave, work), work, pools, board):
                committed.add(unit["unit_id"])
                yield unit
    except BaseException:
        # what is under way, or solved and not yet committed, ends with this driver by no fault of its own
        begun = {name.removeprefix(_WORK): number for name, number in close(board).items() if name.startswith(_WORK)}
        attempts.forgive(output, {unit: number for unit, number in begun.items() if unit not in committed})
        raise


def rows_of(plan: pa.Table, units: pa.Table, work: Work) -> pa.Table:
    """These units of `index(plan)` with all that the load stage asks for."""
    units = gather(plan, units, UNIT_COLUMNS)
    if work.config.references is not None:
        units = units.append_column("reference_uri", _reference_uris(units["key"], work.config.references))
    return units


def _solve_wave(units: pa.Table, work: Work, pools: Pools, board: Any) -> Iterator[dict[str, Any]]:
    arguments = {"work": work, "board": board}
    dataset = (
        ray.data.from_arrow(blocks(units))
        .map_batches(load, batch_size=1, batch_format="pyarrow", **pools.io, fn_kwargs=arguments)
        .map_batches(
            Solver,
            batch_size=1,
            batch_format="pyarrow",
            **pools.solver,
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(
                size=min(pools.solver_actors, len(units)), max_tasks_in_flight_per_actor=2
            ),
        )
        .map_batches(write, batch_size=1, batch_format="pyarrow", **pools.io, fn_kwargs={"work": work})
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from table.to_pylist()


def _reference_uris(keys: pa.ChunkedArray, references: str) -> pa.Array:
    lists = keys.combine_chunks()
    uris = pc.binary_join_element_wise(pa.scalar(references.rstrip("/")), lists.flatten(), "/")
    return pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(lists.value_lengths().to_numpy())), pa.int32()), uris
    )
