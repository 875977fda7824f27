"""Progress: a line a few times a minute, or a bar on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LINE_EVERY = 15.0  # seconds
BAR_EVERY = 0.5
_BAR = 24
_TELLING = 0.05  # share of the cost from which on its speed tells the time left, if no image is done


@dataclass(eq=False)
class Progress:
    """Counts images, and their cost if there is any; prints from its own thread while it is open."""

    label: str  # of the work
    images: int  # in all, with those of earlier starts
    cost: int = 0  # in all, in window evaluations (`units.index`)
    inside: Callable[[], int] = lambda: 0  # the cost of work that is under way and not counted yet
    expected: float | None = None  # predicted seconds of this start: the time left until something is done

    def __post_init__(self) -> None:
        self.images_done = self.cost_done = 0
        self._images_before = self._cost_before = 0
        self._first_seen: tuple[float, int] | None = None  # (seconds, what was done) of the first line with a speed
        self._closed = threading.Event()
        self._started = time.monotonic()
        self._bar = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._print, name="progress", daemon=True)

    def skip(self, images: int, cost: int = 0) -> None:
        """Count the work of an earlier start, which does not count for this start's speed."""
        self._images_before += images
        self._cost_before += cost
        self.advance(images, cost)

    def advance(self, images: int, cost: int = 0) -> None:
        self.images_done += images
        self.cost_done += cost

    def line(self) -> str:
        """`solve  12/64 images  cost 1,200/6,000  0.8 images/s  1:05 left`."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        images, cost = self.images_done, self._cost_now()
        # the cost predicts the time better than images do: theirs differ by two orders of magnitude
        done, total, before = (
            (cost, self.cost, self._cost_before) if self.cost else (images, self.images, self._images_before)
        )
        parts = [f"{self.label}  {images:,}/{self.images:,} images"]
        if self.cost:
            parts.append(f"cost {cost:,}/{self.cost:,}")
        parts.append(f"{(images - self._images_before) / seconds:.2f} images/s")
        # the first updates of a large photo say little: they look at few of its windows
        if images > self._images_before or done - before > _TELLING * total:
            since, at = self._first_seen or (0.0, before)  # the first seconds are the workers' start
            if done - at <= _TELLING * total:
                since, at = 0.0, before
            self._first_seen = self._first_seen or (seconds, done)
            parts.append(f"{clock((total - done) * (seconds - since) / (done - at))} left")
        else:
            left = (self.expected or 0) - seconds
            parts.append(f"{clock(left)} left" if left > 0 else "starting")
        return "  ".join(parts)

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._thread.join()

    def _print(self) -> None:
        while not self._closed.wait(BAR_EVERY if self._bar else LINE_EVERY):
            if self._bar:
                share = self._cost_now() / self.cost if self.cost else self.images_done / max(self.images, 1)
                full = int(_BAR * share)
                print(f"\r\x1b[2K{'█' * full}{'░' * (_BAR - full)} {self.line()}", end="", flush=True)
            else:
                print(self.line(), flush=True)
        if self._bar:
            print("\r\x1b[2K", end="", flush=True)

    def _cost_now(self) -> int:
        return min(self.cost_done + self.inside(), self.cost)


def clock(seconds: float) -> str:
    """`1:05`, `2:03:20`, `3 d 04:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
