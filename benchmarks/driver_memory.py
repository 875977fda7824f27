"""What the records of a large run cost the driver: `python -m benchmarks.driver_memory --images 1000000`.

Plan and commits are made up; what is done with them is what a start does: read the plan, read all commits of a half
finished run, list its units in their order, and sum up the finished run. No image is read, and Ray is not started.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.command import run_command
from benchmarks.list_shards import Steps
from flashray import storage
from flashray.pipeline.commit import COMMIT, committed_units
from flashray.pipeline.damage import missing_and_changed
from flashray.pipeline.outputs import Layout
from flashray.pipeline.plan import PLAN, read_plans, write_plan
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.run_tables import parquet
from flashray.pipeline.summary import summarise
from flashray.pipeline.units import index, unit_ids
from flashray.report.markdown import to_markdown


@dataclass(frozen=True)
class DriverMemoryConfig:
    """How large a run.

    Args:
        images: of the archive, of one window each.
        unit_images: of a unit.
    """

    images: int = 1_000_000
    unit_images: int = 128


def plan_of(images: int, unit_images: int) -> pa.Table:
    """A made-up plan: keys of 21 characters, parameters of 34."""
    place = np.arange(images)
    key = pc.binary_join_element_wise("folder/", pc.utf8_lpad(pa.array(place).cast(pa.string()), 10, "0"), ".jpg", "")
    one, many = pa.array(np.ones(images, np.int32)), pa.array(np.full(images, 128))
    sigma = np.random.default_rng(0).uniform(0.05, 0.8, images)
    offsets = pa.array(np.arange(images + 1), pa.int32())
    columns = {
        "key": key,
        "uri": pc.binary_join_element_wise("s3://bucket/archive", key, "/"),
        **dict.fromkeys(("width", "height"), many),
        "pixels": pa.array(np.full(images, 128**2)),
        "windows": one,
        "sigma_hat": pa.array(sigma),
        "window_sigma": pa.ListArray.from_arrays(offsets, pa.array(sigma, pa.float32())),
        "touched": pa.array(np.ones(images, bool)),
        "start_step": one,
        "starts": pa.MapArray.from_arrays(offsets, one, one),
        "nfe": pa.array(np.ones(images)),
        "fallback": pa.array(np.zeros(images, bool)),
        "unit_id": unit_ids(0, place // unit_images),
        "noise_std": pa.array(np.full(images, 0.05)),
        "parameters": pa.array(['{"blur_std": 1.2345678901234567}']).take(pa.array(np.zeros(images, np.int8))),
        "estimated": pa.array(np.zeros(images, bool)),
        "status": pa.array(["ok"]).take(pa.array(np.zeros(images, np.int8))),
    }
    given = {name: values.cast(PLAN.field(name).type) for name, values in columns.items()}
    return pa.table({field.name: given.get(field.name, pa.nulls(images, field.type)) for field in PLAN}, schema=PLAN)


def commit(output: str, plan: pa.Table, units: range, unit_images: int) -> None:
    """Write the commits of these units."""
    for unit in units:
        rows = plan.slice(unit * unit_images, unit_images)
        columns = {name: rows[name] for name in ("key", "status", "start_step", "nfe", "sigma_hat")}
        columns["sha256"] = pa.array([f"{n:064x}" for n in range(len(rows))])
        columns |= {name: pa.array(np.full(len(rows), 30.0)) for name in ("seconds", "psnr")}
        columns["size"] = pa.array(np.full(len(rows), 40_000))
        lacking = {field.name: pa.nulls(len(rows), field.type) for field in COMMIT if field.name not in columns}
        table = pa.table({name: (columns | lacking)[name] for name in COMMIT.names}, schema=COMMIT)
        storage.create_if_absent(run_uri(output, "commits", f"{rows['unit_id'][0]}.parquet"), parquet(table))


def driver_memory(config: DriverMemoryConfig) -> None:
    """Print the table."""
    steps = Steps()
    steps.timed("imports alone", len, "")
    with tempfile.TemporaryDirectory() as output:
        plan = plan_of(config.images, config.unit_images)
        write_plan(output, 0, plan)
        units = -(-config.images // config.unit_images)
        commit(output, plan, range(units // 2), config.unit_images)
        del plan
        steps.timed("the made-up plan itself, in one table", len, "")
        steps.timed("read the plan", read_plans, output)
        status = steps.timed("status of a half finished run", RunStatus.read, output)
        pending = steps.timed("its pending images", lambda: status.pending)
        steps.timed("their units in the order of dispatch", index, pending)
        commit(output, status.plan, range(units // 2, units), config.unit_images)
        del status, pending
        assert len(committed_units(output)) == units
        status = steps.timed("status of the finished run", RunStatus.read, output)
        steps.timed("all commits, checked against the plan", lambda: status.results)
        sizes = dict.fromkeys(status.plan["key"].to_pylist(), 40000)
        steps.timed(
            "files compared with their commits", missing_and_changed, Layout(output), status.results, sizes, False
        )
        del sizes
        steps.timed("summary", summarise, status, 200, {})
    print(f"{config.images:,} images in {units:,} units\n")
    print(to_markdown(steps.rows))


if __name__ == "__main__":
    sys.exit(run_command(DriverMemoryConfig, driver_memory, "benchmarks.driver_memory"))
