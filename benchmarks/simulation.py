"""A simulation of the dispatch of units to a pool of actors, event by event, in any unit of time.

Without trouble it is `flashray.pipeline.cost.makespan`, which quotes runs.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

from flashray.pipeline.workload import Floats


@dataclass(frozen=True)
class Pool:
    """The actors that units are dispatched to.

    Attributes:
        actors: each works on one unit at a time.
        ahead: loaded units that wait at an actor, in addition to the one it works on (Ray Data's
            max_tasks_in_flight_per_actor, less one).
        start_up: time before an actor's first unit, and again after it has died.
        failures: deaths per unit of busy time; the unit of a dead actor is repeated before all others.
        slow: share of the actors that are slower than the rest.
        slowness: how many times longer these take.
        wave: units of one Ray Data program; the next wave starts when the last unit of this one is done.
        seed: decides which actors are slow, and when they die.
    """

    actors: int
    ahead: int = 1
    start_up: float = 0.0
    failures: float = 0.0
    slow: float = 0.0
    slowness: float = 2.0
    wave: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """The result of a dispatch.

    Attributes:
        makespan: from the first start-up to the last unit's end.
        ideal: the units' time divided over the actors by their speed, without any other loss.
        deaths: number of actors that died, and so of units that were repeated.
    """

    makespan: float
    ideal: float
    deaths: int

    @property
    def over_ideal(self) -> float:
        return self.makespan / self.ideal if self.ideal else 1.0


def simulate(seconds: Floats, pool: Pool) -> Outcome:
    """Dispatch units in their order, each to the actor with the fewest of them; every unit is done once.

    `seconds` is [units], what each takes on an actor of full speed.
    """
    random = np.random.default_rng(pool.seed)
    pace = np.where(np.arange(pool.actors) < round(pool.slow * pool.actors), pool.slowness, 1.0)
    random.shuffle(pace)
    slower = pace.tolist()
    wave = pool.wave or max(len(seconds), 1)
    now, deaths = 0.0, 0
    for begin in range(0, len(seconds), wave):
        now, died = _run_wave(seconds[begin : begin + wave], slower, pool, random, now)
        deaths += died
    return Outcome(now, float(seconds.sum() / (1 / pace).sum()), deaths)


def _run_wave(
    seconds: Floats, pace: list[float], pool: Pool, random: np.random.Generator, now: float
) -> tuple[float, int]:
    """(end of the last unit, deaths) of one Ray Data program that begins at `now` with actors that start up."""
    queue = deque(seconds.tolist())
    waiting: list[deque[float]] = [deque() for _ in range(pool.actors)]
    for _ in range(1 + pool.ahead):
        for held in waiting:
            if queue:
                held.append(queue.popleft())
    # (time, actor): the actor is free then, and takes the next unit that waits at it
    events = [(now + pool.start_up, actor) for actor in range(pool.actors) if waiting[actor]]
    heapq.heapify(events)
    end, deaths = now, 0
    while events:
        now, actor = heapq.heappop(events)
        end = max(end, now)
        held = waiting[actor]
        if queue and not held:
            held.append(queue.popleft())
        if not held:
            continue
        takes = held[0] * pace[actor]
        survives = random.exponential(1 / pool.failures) if pool.failures else np.inf
        if survives < takes:  # `held[0]` stays where it is, to be begun anew when the actor is up again
            deaths += 1
            heapq.heappush(events, (now + survives + pool.start_up, actor))
            continue
        held.popleft()
        heapq.heappush(events, (now + takes, actor))
        while queue and len(held) < pool.ahead:
            held.append(queue.popleft())
    return end, deaths
