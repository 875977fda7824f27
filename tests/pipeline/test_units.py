"""Packing: every image once, like with like, equal cost, the same units every time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.dispatch import slot_utilization
from flashray.pipeline.slot_utilization import slot_steps
from flashray.pipeline.units import (
    ALONE,
    DEAREST,
    LARGEST,
    MOST,
    TAPER,
    Packing,
    choose_unit_images,
    gather,
    image_costs,
    index,
    pack,
    unit_ids,
    unit_starts,
)
from flashray.pipeline.workload import Workload


def mixed(n: int, seed: int = 0) -> np.ndarray:
    """Start steps as an archive of mixed severity has them: many easy images, a tail of hard ones."""
    return (np.random.default_rng(seed).gamma(1.5, 120, n).clip(0, 1000)).astype(np.int64)


windows = Workload.of_windows


def plan_of(step: np.ndarray, ids: pa.Array) -> pa.Table:
    """Plan rows of images of one window."""
    load = windows(step)
    columns = {"unit_id": ids, "nfe": pa.array(step.astype(np.int32)), "starts": load.as_maps()}
    return pa.table(columns | {"pixels": pa.array(load.pixels)})


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 1000, 20_000])
@pytest.mark.parametrize("unit_images", [1, 8, 32])
def test_every_image_once_in_order_of_difficulty(n: int, unit_images: int) -> None:
    step = mixed(n)
    order, unit = pack(windows(step), unit_images)
    assert sorted(order.tolist()) == list(range(n))
    assert (np.diff(step[order]) <= 0).all()  # hardest first
    assert (np.diff(unit) >= 0).all()
    assert np.array_equal(np.unique(unit), np.arange(unit[-1] + 1))  # no gaps


@pytest.mark.parametrize("unit_images", [4, 32])
def test_units_cost_about_the_same_and_stay_small(unit_images: int) -> None:
    step = mixed(10_000)
    order, unit = pack(windows(step), unit_images)
    cost = image_costs(windows(step))[order]
    totals = np.bincount(unit, weights=cost)
    share = cost.sum() / -(-len(step) // unit_images)
    assert (np.abs(totals - share) <= cost.max()).all()  # off by less than one image at the ends
    assert np.bincount(unit).max() <= (MOST + 1) * unit_images
    assert np.bincount(unit)[0] < unit_images < np.bincount(unit)[-1]  # hard images travel in smaller company


@pytest.mark.parametrize("slots", [2, 8, 64])
@pytest.mark.parametrize("actors", [1, 5])
def test_cuts_fall_between_slotfuls(slots: int, actors: int) -> None:
    step = mixed(5003)
    order, unit = pack(windows(step), 32, slots, actors)
    assert sorted(order.tolist()) == list(range(5003))
    assert (np.diff(step[order]) <= 0).all()
    images = np.bincount(unit)
    assert (images > 0).all()  # no gaps
    assert (images[:-1] % slots == 0).all()


def test_whole_slotfuls_keep_the_slots_filled() -> None:
    step = mixed(5000)
    filled = []
    for slots in (1, 8):
        order, unit = pack(windows(step), 32, slots)
        filled.append(slot_utilization(slot_steps(step[order], np.flatnonzero(np.diff(unit, prepend=-1)), 8)))
    assert filled[0] < 0.9
    assert filled[1] > 0.99


def test_units_of_several_actors_become_smaller_at_the_end() -> None:
    step, actors = mixed(50_000), 10
    order, unit = pack(windows(step), 50, actors=actors)
    totals = np.bincount(unit, weights=image_costs(windows(step))[order])
    share = image_costs(windows(step)).sum() / 1000
    most = image_costs(windows(step)).max()
    left = totals[::-1].cumsum()[::-1]
    assert (totals <= share + most).all()
    bulk = left > (2 * actors + 1) * share  # as long as everybody gets two more
    assert bulk.sum() > 0.9 * 1000
    assert (np.abs(totals[bulk] - share) <= most).all()
    tail = totals[~bulk]
    assert tail[-2] < share / TAPER + most
    assert (np.diff(tail[:-1]) <= most).all()  # never larger again, but for an image at the cuts
    assert len(tail) < 7 * actors  # and not many: 2 (1 + ln 8) each


def test_one_image_and_one_that_costs_more_than_all_others() -> None:
    for slots, actors in ((1, 1), (8, 4)):
        order, unit = pack(windows(np.array([7])), 32, slots, actors)
        assert (order.tolist(), unit.tolist()) == ([0], [0])
    step = np.array([1, 1, 1, 1000, 1, 1])
    order, unit = pack(windows(step), 2)
    assert order[0] == 3
    assert np.bincount(unit)[0] == 1  # it travels alone
    assert unit.tolist() == sorted(unit.tolist())


def test_unit_sizes_suit_archive_and_pool() -> None:
    """Whole slotfuls, nobody goes without, and never more than what one loses gladly."""
    for images in (1, 7, 64, 512, 10_000, 10**6):
        for actors in (1, 4, 128):
            for slots in (1, 8, 64):
                size = choose_unit_images(windows(np.full(images, 10)), actors, slots)
                assert size % slots == 0
                assert size <= max(LARGEST + slots / 2, slots)
                assert size <= max(images / actors + slots / 2, slots)
    assert choose_unit_images(windows(np.full(10**6, 1000)), 4, 8) == DEAREST / 1000
    assert choose_unit_images(windows(np.full(10**6, 1)), 4, 8) == LARGEST
    assert choose_unit_images(windows(np.array([], np.int64)), 4, 8) == 8
    sizes = [choose_unit_images(windows(np.full(10**5, 10)), actors, 8) for actors in (1, 16, 64, 256, 1024)]
    assert sizes == sorted(sizes, reverse=True)


def test_packing_is_what_a_run_asks_for() -> None:
    step = mixed(3000)
    for given, size in ((40, 40), (None, choose_unit_images(windows(step), 3, 8))):
        packed = Packing(given, slots=8, actors=3)(windows(step))
        assert all(np.array_equal(*pair) for pair in zip(packed, pack(windows(step), size, 8, 3), strict=True))


def test_units_begin_where_ids_change() -> None:
    ids = unit_ids(0, np.array([0, 0, 1, 2, 2, 2]))
    assert unit_starts(ids).tolist() == [0, 2, 3]
    assert unit_starts(pa.chunked_array([ids.slice(0, 4), ids.slice(4)]).combine_chunks()).tolist() == [0, 2, 3]
    assert unit_starts(ids.slice(0, 0)).tolist() == []


def test_part_of_the_units_is_gathered_alone() -> None:
    step = mixed(500)
    order, unit = pack(windows(step), 16)
    plan = plan_of(step[order], unit_ids(0, unit)).append_column("place", pa.array(order))
    units = index(plan)
    whole = gather(plan, units, ["place"])
    parts = [gather(plan, units.slice(first, 7), ["place"]) for first in range(0, len(units), 7)]
    assert pa.concat_tables(parts).equals(whole)
    assert gather(plan, units.slice(3, 0), ["place"])["place"].to_pylist() == []


def test_images_of_equal_start_step_keep_the_listing_order() -> None:
    step = np.array([5, 9, 5, 9, 5])
    order, _ = pack(windows(step), 2)
    assert order.tolist() == [1, 3, 0, 2, 4]


def test_packing_is_stable() -> None:
    step = mixed(5000)
    first, second = pack(windows(step), 32), pack(windows(step.copy()), 32)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_full_chains_are_cut_evenly() -> None:
    step = np.full(100, 1000)
    _, unit = pack(windows(step), 32)
    assert np.bincount(unit).tolist() == [25, 25, 25, 25]


def test_nothing_to_pack() -> None:
    none = np.array([], dtype=np.int64)
    order, unit = pack(windows(none), 32)
    assert len(order) == len(unit) == 0
    assert unit_ids(0, unit).to_pylist() == []


def test_images_that_cost_nothing() -> None:
    order, unit = pack(windows(np.zeros(64, np.int64)), 32)
    assert len(order) == 64
    assert np.bincount(unit).tolist() == [32, 32]


def test_ids_sort_as_the_units_do() -> None:
    ids = unit_ids(3, np.array([0, 0, 7, 123_456])).to_pylist()
    assert ids == ["03-00000000", "03-00000000", "03-00000007", "03-00123456"]


def test_groups_hold_each_unit_whole_and_dearest_first() -> None:
    step = mixed(1000)
    order, unit = pack(windows(step), 16)
    keys = np.array([f"key {i}" for i in range(1000)])[order]
    plan = plan_of(step[order], unit_ids(0, unit)).append_column("key", pa.array(keys))
    units = gather(plan, index(plan), ["key", "nfe"])
    assert sorted(units["key"].combine_chunks().flatten().to_pylist()) == sorted(keys.tolist())
    rows = units.to_pylist()
    dearness = [sum(row["nfe"]) + ALONE * len(row["key"]) for row in rows]
    assert units["cost"].to_pylist() == dearness == sorted(dearness, reverse=True)
    members = {one: keys[unit == i].tolist() for i, one in enumerate(dict.fromkeys(unit_ids(0, unit).to_pylist()))}
    assert {row["unit_id"]: row["key"] for row in rows} == members


def test_groups_of_nothing() -> None:
    none = pa.array([], pa.string())
    empty = plan_of(np.array([], np.int64), none).append_column("key", none)
    assert len(gather(empty, index(empty), ["key"])) == 0


def test_a_million_images_take_no_python_object_each() -> None:
    step = mixed(1_000_000)
    order, unit = pack(windows(step), 32)
    plan = plan_of(step[order], unit_ids(0, unit))
    units = gather(plan, index(plan), ["nfe"])
    assert units["nfe"].type == pa.list_(pa.int32())
    assert pa.compute.sum(units["images"]).as_py() == 1_000_000
