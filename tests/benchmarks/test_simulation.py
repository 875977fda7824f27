"""The simulated dispatch against closed forms, and what must hold whatever happens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.dispatch import WAYS, compare, disturbed, equal_cost, makespan_over_ideal, tapered
from benchmarks.packing import mixed_steps
from benchmarks.simulation import Pool, simulate
from flashray.pipeline.cost import makespan


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize(("units", "actors"), [(1, 1), (7, 3), (12, 4), (3, 8), (100, 7)])
def test_equal_units_take_whole_rounds(units: int, actors: int, ahead: int) -> None:
    outcome = simulate(np.full(units, 2.0), Pool(actors, ahead))
    assert outcome.makespan == pytest.approx(2.0 * math.ceil(units / actors))
    assert outcome.ideal == pytest.approx(2.0 * units / actors)
    assert outcome.deaths == 0


def test_one_actor_takes_the_sum_and_its_start_up() -> None:
    seconds = np.random.default_rng(0).random(50)
    assert simulate(seconds, Pool(1, start_up=3.0)).makespan == pytest.approx(3.0 + seconds.sum())
    assert simulate(seconds, Pool(50, start_up=3.0)).makespan == pytest.approx(3.0 + seconds.max())
    assert simulate(np.array([]), Pool(4)).makespan == 0


def test_longest_first_is_list_scheduling() -> None:
    """Graham's example by hand: 5 4 3 3 3 on two actors; the first to be free takes the next."""
    seconds = np.array([5.0, 4, 3, 3, 3])
    assert simulate(seconds, Pool(2, ahead=0)).makespan == 10  # 5+3 and 4+3, then +3 on the one that ends at 7
    assert simulate(seconds[::-1], Pool(2, ahead=0)).makespan == 11  # 3+3 and 3+4 … the longest begins last


def test_a_unit_that_waits_at_a_busy_actor_is_not_taken_by_an_idle_one() -> None:
    seconds = np.array([9.0, 1, 1, 1])
    assert simulate(seconds, Pool(2, ahead=0)).makespan == 9
    assert simulate(seconds, Pool(2, ahead=1)).makespan == 10


def test_waves_wait_for_each_other() -> None:
    outcome = simulate(np.full(6, 1.0), Pool(4, start_up=0.5, wave=3))
    assert outcome.makespan == pytest.approx(2 * (0.5 + 1.0))


def test_slow_actors_take_longer_and_fewer() -> None:
    """Half of the actors at half the pace: together they are worth 1.5 of 2."""
    outcome = simulate(np.full(3000, 1.0), Pool(2, slow=0.5, slowness=2.0))
    assert outcome.ideal == pytest.approx(2000)
    assert outcome.makespan == pytest.approx(2000, abs=4)


def test_deaths_cost_what_they_undo() -> None:
    """Units of length t under deaths at a rate λ take (e^λt - 1)/λ each on average, start-ups aside."""
    rate, length, units = 0.5, 1.0, 20_000
    outcome = simulate(np.full(units, length), Pool(1, failures=rate))
    assert outcome.makespan / units == pytest.approx(math.expm1(rate * length) / rate, rel=0.02)
    assert outcome.deaths / units == pytest.approx(math.expm1(rate * length), rel=0.03)


def test_the_same_seed_gives_the_same_outcome() -> None:
    seconds = np.random.default_rng(1).random(300)
    pool = Pool(8, failures=0.3, slow=0.25, start_up=0.1)
    assert simulate(seconds, pool) == simulate(seconds, pool)
    assert simulate(seconds, pool) != simulate(seconds, Pool(8, failures=0.3, slow=0.25, start_up=0.1, seed=1))


@pytest.mark.parametrize("units", [0, 1, 5, 300])
@pytest.mark.parametrize("actors", [1, 3, 40])
def test_a_run_predicts_what_goes_without_trouble(units: int, actors: int) -> None:
    seconds = np.random.default_rng(units).exponential(size=units)
    assert makespan(seconds, actors, 0.7) == simulate(seconds, Pool(actors, start_up=0.7)).makespan


def test_no_way_beats_the_ideal_and_each_idea_pays() -> None:
    steps = mixed_steps(20_000)
    over = {name: compare(steps, way, 8, Pool(32)) for name, way in WAYS.items()}
    assert all(one.over_ideal >= 1 for one in over.values())
    assert over["no bucketing"].slot_utilization < 0.95 < 0.99 < over["equal cost, whole slotfuls"].slot_utilization
    ranking = [over[name].over_ideal for name in ("buckets", "buckets, longest first", "smaller units at the end")]
    assert ranking == sorted(ranking, reverse=True)
    assert over["smaller units at the end"].over_ideal < over["equal cost, whole slotfuls"].over_ideal


@pytest.mark.parametrize("chain", [1000, 20])
def test_a_thousand_slots_end_together(chain: int) -> None:
    """The figure that the project promises, on 128 actors of 8 slots."""
    assert makespan_over_ideal(mixed_steps(100_000, chain)) < 1.01


def test_one_actor_packs_as_if_nobody_else_were_there() -> None:
    steps = mixed_steps(1000)
    assert compare(steps, tapered, 8, Pool(1)) == compare(steps, equal_cost, 8, Pool(1))


def test_trouble_costs_time() -> None:
    steps = mixed_steps(20_000)
    ideal = float((steps + 1).sum()) / 8 / 32
    found = {name: compare(steps, tapered, 8, pool) for name, pool in disturbed(Pool(32), ideal).items()}
    calm = found.pop("nothing goes wrong")
    assert found.pop("no unit waits at an actor").over_ideal <= calm.over_ideal + 0.01
    assert found.pop("in waves of 10,000 units") == calm  # there are fewer
    assert all(one.over_ideal > calm.over_ideal for one in found.values())
    assert found["each actor dies once"].deaths > found["a tenth of the actors dies once"].deaths > 0
