"""A small actor on which workers note what they are at: progress inside units, and work that kills its worker.

Ray runs a task again, without end, when its worker dies; work that always kills it (a decoder that crashes, a unit that
exhausts the memory) would hold the run forever. The board counts the deaths, and after three the work is given up.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashray.errors import ImageError

ATTEMPTS = 3
_PATIENCE = 30  # seconds; a lost board must not stop the work


class _Board:
    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.units: dict[str, int] = {}

    def begin(self, work: str) -> int:
        """How many times this work was begun before and never ended: its worker died."""
        self.begun[work] += 1
        return self.begun[work] - 1

    def end(self, work: str) -> None:
        self.begun.pop(work, None)

    def report(self, unit_id: str, nfe: int) -> None:
        self.units[unit_id] = nfe

    def under_way(self) -> dict[str, int]:
        """NFE done so far in each unit that has reported."""
        return self.units


def start_board() -> Any:
    """A board beside the driver, which lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@contextmanager
def watched(board: Any, work: str) -> Iterator[None]:
    """Note the beginning and the end of a piece of work; ImageError when it has killed its worker three times.

    After an error of the GPU itself nothing works in the process any more: it ends here, and Ray starts another one.
    """
    try:
        deaths = ray.get(board.begin.remote(work), timeout=_PATIENCE)
    except ray.exceptions.RayError:
        deaths = 0
    try:
        if deaths >= ATTEMPTS:
            raise ImageError(f"given up: the worker died {deaths} times while it was at {work}")
        yield
    except Exception as error:
        if "CUDA error" in str(error):
            os._exit(1)  # before the board learns of an end
        raise
    finally:
        board.end.remote(work)


def reason(error: Exception) -> str:
    """What a row says of an error that its image, or its whole batch, ran into."""
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"


def under_way(board: Any, nfe_of: Mapping[str, int]) -> int:
    """NFE that the workers have behind them in the units of `nfe_of`, those that are not committed yet."""
    try:
        units = ray.get(board.under_way.remote(), timeout=2)
    except ray.exceptions.RayError:
        return 0
    return sum(min(nfe, nfe_of.get(unit_id, 0)) for unit_id, nfe in units.items())
