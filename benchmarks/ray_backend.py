"""The cells of an experiment as Ray tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from benchmarks.cell_models import Setting
from benchmarks.cells import Cell
from benchmarks.compute_cell import compute
from benchmarks.experiment_photos import Bundle
from benchmarks.results import Result
from flashray.errors import FlashrayError
from flashray.pipeline.cluster import cause_of, connect, cores


def compute_on_ray(
    cells: Sequence[Cell], photos: Bundle, setting: Setting, workers: int | None
) -> Iterator[tuple[Cell, Result | Exception]]:
    """Each cell with its result, or with what went wrong, as they finish; so many at once.

    The photos go to the cluster once. A task whose worker dies is tried again, twice, and is then the cell's failure.
    """
    own = connect()
    try:
        gpu = setting.device == "cuda"
        task = ray.remote(compute).options(num_cpus=setting.threads, num_gpus=1 if gpu else 0, max_retries=2)
        shared = ray.put(photos)
        waiting, running = deque(cells), dict[Any, Cell]()
        capacity = workers or _capacity(setting.threads, gpu)
        while waiting or running:
            while waiting and len(running) < capacity:
                cell = waiting.popleft()
                running[task.remote(cell, shared, setting)] = cell
            (done,), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                result = FlashrayError(cause_of(error))
            yield cell, result
    finally:
        if own:
            ray.shutdown()


def _capacity(threads: int, gpu: bool) -> int:
    """Cells at once: one a GPU; on CPUs, as many as their threads fit in the cores that there are."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpu:
        return max(1, int(sum(node.get("GPU", 0) for node in nodes)))
    if len(nodes) == 1:  # this machine, which may count more CPUs than it has
        return max(1, min(cores(), int(nodes[0].get("CPU", 1))) // threads)
    return max(1, sum(int(node.get("CPU", 0) // threads) for node in nodes))
