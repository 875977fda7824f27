"""Quarantine: find and give up images that kill their worker.

A small actor, the quarantine, records what the workers are doing: progress inside units, and which work is under way.
When a worker dies, Ray repeats its task, without a limit; an image that always kills its worker (a decoder that
crashes, memory) would hold the run forever. The quarantine counts the deaths. After two deaths the images of the work
are taken one by one, so that a third death identifies the image. That image is given up, and the others are restored.
"""

from __future__ import annotations

import os
import time
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
CULPRITS = 8  # images that killed the worker alone, after which the rest of their work is given up too
_PATIENCE = 30  # seconds; a lost quarantine must not stop the work
_NOTES = 3  # seconds that a driver which stops waits for notes under way
_CLOSED = Past(deaths=-1)  # the driver is stopping, and its workers end with it
Note = Callable[[int, str | None], None]


class _Quarantine:
    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.latest: dict[str, int] = {}  # number (from 1) of the last attempt at each piece of work
        self.closed = False
        self.noting: set[str] = set()  # begun, and not yet noted
        self.alone: dict[str, str] = {}
        self.culprits: dict[str, set[str]] = {}
        self.units: dict[str, int] = {}

    def recall(self, past: Mapping[str, Past]) -> None:
        for work, one in past.items():
            self.begun[work] = one.deaths
            self.culprits[work] = set(one.culprits)

    def begin(self, work: str) -> Past:
        """The history of this work: each time that it was begun and not ended, its worker died."""
        if self.closed:
            return _CLOSED
        if work in self.alone:
            self.culprits.setdefault(work, set()).add(self.alone.pop(work))
        self.begun[work] += 1
        self.latest[work] = self.begun[work]
        self.noting.add(work)
        return Past(self.begun[work] - 1, frozenset(self.culprits.get(work, ())))

    def noted(self, work: str) -> None:
        self.noting.discard(work)

    def turn(self, work: str, image: str) -> None:
        self.alone[work] = image

    def end(self, work: str) -> None:
        self.begun.pop(work, None)
        self.alone.pop(work, None)

    def close(self) -> dict[str, int]:
        self.closed = True
        return self.latest

    def under_way(self) -> int:
        return len(self.noting)

    def report(self, unit_id: str, nfe: int) -> None:
        self.units[unit_id] = nfe

    def reported(self) -> dict[str, int]:
        """NFE done so far in each unit that has reported."""
        return self.units


def start_quarantine() -> Any:
    """A quarantine on the driver's node, which lives as long as the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(_Quarantine).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class Watch:
    """A piece of work that a worker has begun."""

    quarantine: Any
    work: str
    past: Past
    note: Note  # called with the attempt's number at the beginning, and with the image before each that is taken alone

    def parts(self, images: Sequence[str]) -> Iterator[tuple[list[int], ImageError | None]]:
        """The indices of the images to be taken together; with an error, the indices of those to be given up.

        All images at once, until the work has killed its worker twice; then one by one. Their names are unique.
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
                self.note(self.past.deaths + 1, image)
                _ask(self.quarantine.turn, self.work, image)
                yield [place], None


def unnoted(number: int, image: str | None) -> None:
    """A note that does nothing, for work whose attempts only the quarantine records."""


@contextmanager
def watched(quarantine: Any, work: str, note: Note = unnoted) -> Iterator[Watch]:
    """Record the beginning and the end of a piece of work that may kill its worker."""
    past = _ask(quarantine.begin, work) or Past()
    if past == _CLOSED:
        Event().wait()  # until the driver ends this process
    watch = Watch(quarantine, work, past, note)
    note(watch.past.deaths + 1, None)
    quarantine.noted.remote(work)
    try:
        yield watch
    finally:
        quarantine.end.remote(work)


def reason(error: Exception) -> str:
    """The text in a row for an error of its image or batch.

    After an error of the GPU itself the process is unusable: it ends here, before the work counts as ended on the
    quarantine, and Ray starts another process.
    """
    if "CUDA error" in str(error):
        os._exit(1)
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"


def recall(quarantine: Any, past: Mapping[str, Past]) -> None:
    """Give the quarantine the history that earlier drivers recorded."""
    _ask(quarantine.recall, past)


def close(quarantine: Any) -> dict[str, int]:
    """Stop workers from beginning more work; returns what they have begun and the number (from 1) of the attempt.

    What they have begun is noted by then, unless a note takes too long. Empty when the quarantine cannot be reached.
    """
    begun = _ask(quarantine.close) or {}
    deadline = time.monotonic() + _NOTES
    while time.monotonic() < deadline and _ask(quarantine.under_way, patience=_NOTES):
        time.sleep(0.02)
    return begun


def nfe_under_way(quarantine: Any, nfe_of: Mapping[str, int]) -> int:
    """Window evaluations done so far in the units of `nfe_of`, which are not committed yet; at most what it says."""
    units = _ask(quarantine.reported, patience=2) or {}
    return sum(min(nfe, nfe_of.get(unit_id, 0)) for unit_id, nfe in units.items())


def _ask(method: Any, *arguments: Any, patience: float = _PATIENCE) -> Any:
    """The quarantine's answer, or None when it does not answer."""
    try:
        return ray.get(method.remote(*arguments), timeout=patience)
    except ray.exceptions.RayError:
        return None
