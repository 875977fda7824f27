"""What packing costs the driver: `python -m benchmarks.packing 10000000` prints its seconds and its memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashray.pipeline.units import Packing, gather, index, unit_ids
from flashray.pipeline.workload import Integers, Workload

_WAVE = 10_000  # units whose rows are gathered at once, as for one Ray Data program


def mixed_steps(images: int, chain: int = 1000, seed: int = 0) -> Integers:
    """Start steps as an archive of mixed severity has them: many easy images, a tail of hard ones; mean .18 chain."""
    return np.random.default_rng(seed).gamma(1.5, 0.12 * chain, images).clip(0, chain).astype(np.int64)


def measure_packing(images: int) -> dict[str, float]:
    """{seconds, cpu_seconds, gb} of packing, ids and grouping; gb is the peak of a process of its own, in 10⁹ bytes."""
    command = [sys.executable, "-m", "benchmarks.packing", str(images)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def pack_and_group(images: int) -> tuple[float, float]:
    """(seconds, CPU seconds) from start steps and keys to units with their keys, wave by wave, for 128 actors."""
    steps = mixed_steps(images)
    numbers = pc.utf8_lpad(pa.array(np.arange(images, dtype=np.int32)).cast(pa.string()), 9, "0")
    load = Workload.of_windows(steps, 128 * 128)
    columns = {"nfe": pa.array(steps), "starts": load.as_maps(), "pixels": pa.array(load.pixels)}
    listing = pa.table({"key": pc.binary_join_element_wise("photos/", numbers, ".png", "")} | columns)
    del numbers, columns
    began, busy = time.perf_counter(), time.process_time()
    order, unit = Packing(None, slots=8, actors=128)(load)
    plan = listing.take(pa.array(order)).append_column("unit_id", unit_ids(0, unit))
    units = index(plan)
    grouped = sum(
        pc.sum(gather(plan, units.slice(first, _WAVE), ["key", "nfe"])["images"]).as_py()
        for first in range(0, len(units), _WAVE)
    )
    seconds = time.perf_counter() - began, time.process_time() - busy
    if grouped != images:
        raise AssertionError(f"{grouped} of {images} images were grouped")
    return seconds


def main() -> None:
    seconds, busy = pack_and_group(int(sys.argv[1]))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    scale = 1 if sys.platform == "darwin" else 1024
    found = {"seconds": seconds, "cpu_seconds": busy, "gb": kilobytes * scale / 1e9}
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
