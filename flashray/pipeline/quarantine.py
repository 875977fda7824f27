"""A small actor on which workers note what they are at: progress inside units, and work that kills its worker.

Ray runs a task again, without end, when its worker dies; work that always kills it (a decoder that crashes, an image
that exhausts the memory) would hold the run forever. The board counts the deaths. After two the images of the work are
taken one by one, so that a third names the image that is to blame: it is given up, and its neighbours are not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from flashray.errors import ImageError
from flashray.pipeline.attempt_markers import Past

ATTEMPTS = 3
CULPRITS = 8  # images to blame after which the rest of their work is given up with them
_PATIENCE = 30  # seconds; a lost board must not stop the work
_CLOSED = Past(deaths=-1)  # the driver stops, and its workers with it
Note = Callable[[int, str | None], None]


class _Board:
    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.latest: dict[str, int] = {}  # attempt (from 1) at whatever a worker of this run began
        self.closed = False
        self.alone: dict[str, str] = {}
        self.culprits: dict[str, set[str]] = {}
        self.units: dict[str, int] = {}

    def recall(self, past: Mapping[str, Past]) -> None:
        for work, one in past.items():
            self.begun[work] = one.deaths
            self.culprits[work] = set(one.culprits)

    def begin(self, work: str) -> Past:
        """What became of this work before: its worker died whenever it was begun and never ended."""
        if self.closed:
            return _CLOSED
        if work in self.alone:
            self.culprits.setdefault(work, set()).add(self.alone.pop(work))
        self.begun[work] += 1
        self.latest[work] = self.begun[work]
        return Past(self.begun[work] - 1, frozenset(self.culprits.get(work, ())))

    def turn(self, work: str, image: str) -> None:
        self.alone[work] = image

    def end(self, work: str) -> None:
        self.begun.pop(work, None)
        self.alone.pop(work, None)

    def close(self) -> dict[str, int]:
        self.closed = True
        return self.latest

    def report(self, unit_id: str, nfe: int) -> None:
        self.units[unit_id] = nfe

    def reported(self) -> dict[str, int]:
        """NFE done so far in each unit that has reported."""
        return self.units


def start_board() -> Any:
    """A board beside the driver, which lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class Watch:
    """A piece of work that a worker has begun.

    Attributes:
        past: what happened to it before.
        note: called at the beginning, and before each image that is taken alone, with the attempt's number and it.
    """

    board: Any
    work: str
    past: Past
    note: Note

    def parts(self, images: Sequence[str]) -> Iterator[tuple[list[int], ImageError | None]]:
        """The images' places in the parts to be taken together; with an error, those to be given up.

        All at once, until the work has killed its worker twice; from then on one by one.

        Args:
            images: names that tell them apart within the work.
        """
        if self.past.deaths < ATTEMPTS - 1:
            yield list(range(len(images))), None
            return
        died = f"given up: the worker died {self.past.deaths} times while it was at {self.work}"
        blamed = len(self.past.culprits)
        hopeless = self.past.deaths - blamed >= ATTEMPTS or blamed >= CULPRITS
        for place, image in enumerate(images):
            if image in self.past.culprits:
                yield [place], ImageError(f"{died}, and once when it was at this image alone")
            elif hopeless:
                yield [place], ImageError(died)
            else:
                self._turn(image)
                yield [place], None

    def _turn(self, image: str) -> None:
        self.note(self.past.deaths + 1, image)
        _ask(self.board.turn, self.work, image)


def unnoted(number: int, image: str | None) -> None:
    """The note of work whose attempts are known to the board alone."""


@contextmanager
def watched(board: Any, work: str, note: Note = unnoted) -> Iterator[Watch]:
    """Note the beginning and the end of a piece of work that may kill its worker."""
    past = _ask(board.begin, work) or Past()
    if past == _CLOSED:
        Event().wait()  # for the end that the driver brings
    watch = Watch(board, work, past, note)
    note(watch.past.deaths + 1, None)
    try:
        yield watch
    finally:
        board.end.remote(work)


def reason(error: Exception) -> str:
    """What a row says of an error that its image, or its whole batch, ran into.

    After an error of the GPU itself nothing works in the process any more: it ends here, before the board learns of an
    end, and Ray starts another one.
    """
    if "CUDA error" in str(error):
        os._exit(1)
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"


def recall(board: Any, past: Mapping[str, Past]) -> None:
    """Tell the board what earlier drivers know of the work."""
    _ask(board.recall, past)


def close(board: Any) -> dict[str, int]:
    """Let no worker begin anything more; what they began so far, ended or not, and at which attempt (from 1).

    Nothing when the board cannot be reached.
    """
    return _ask(board.close) or {}


def nfe_under_way(board: Any, nfe_of: Mapping[str, int]) -> int:
    """NFE that the workers have behind them in the units of `nfe_of`, those that are not committed yet."""
    units = _ask(board.reported, patience=2) or {}
    return sum(min(nfe, nfe_of.get(unit_id, 0)) for unit_id, nfe in units.items())


def _ask(method: Any, *arguments: Any, patience: float = _PATIENCE) -> Any:
    """The board's answer, or None when it has none."""
    try:
        return ray.get(method.remote(*arguments), timeout=patience)
    except ray.exceptions.RayError:
        return None
