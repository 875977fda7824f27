"""Packing: every image once, like with like, equal cost, the same units every time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from flashray.pipeline.units import ALONE, MOST, group, image_costs, pack, unit_ids


def mixed(n: int, seed: int = 0) -> np.ndarray:
    """Start steps as an archive of mixed severity has them: many easy images, a tail of hard ones."""
    return (np.random.default_rng(seed).gamma(1.5, 120, n).clip(0, 1000)).astype(np.int64)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 1000, 20_000])
@pytest.mark.parametrize("unit_images", [1, 8, 32])
def test_every_image_once_in_order_of_difficulty(n: int, unit_images: int) -> None:
    step = mixed(n)
    order, unit = pack(step, step, unit_images)
    assert sorted(order.tolist()) == list(range(n))
    assert (np.diff(step[order]) <= 0).all()  # hardest first
    assert (np.diff(unit) >= 0).all()
    assert np.array_equal(np.unique(unit), np.arange(unit[-1] + 1))  # no gaps


@pytest.mark.parametrize("unit_images", [4, 32])
def test_units_cost_about_the_same_and_stay_small(unit_images: int) -> None:
    step = mixed(10_000)
    order, unit = pack(step, step, unit_images)
    cost = image_costs(step)[order]
    totals = np.bincount(unit, weights=cost)
    share = cost.sum() / -(-len(step) // unit_images)
    assert (np.abs(totals - share) <= cost.max()).all()  # off by less than one image at the ends
    assert np.bincount(unit).max() <= (MOST + 1) * unit_images
    assert np.bincount(unit)[0] < unit_images < np.bincount(unit)[-1]  # hard images travel in smaller company


def test_images_of_equal_start_step_keep_the_listing_order() -> None:
    step = np.array([5, 9, 5, 9, 5])
    order, _ = pack(step, step, 2)
    assert order.tolist() == [1, 3, 0, 2, 4]


def test_packing_is_stable() -> None:
    step = mixed(5000)
    first, second = pack(step, step, 32), pack(step.copy(), step.copy(), 32)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_full_chains_are_cut_evenly() -> None:
    step = np.full(100, 1000)
    _, unit = pack(step, step, 32)
    assert np.bincount(unit).tolist() == [25, 25, 25, 25]


def test_nothing_to_pack() -> None:
    none = np.array([], dtype=np.int64)
    order, unit = pack(none, none, 32)
    assert len(order) == len(unit) == 0
    assert unit_ids(0, unit).to_pylist() == []


def test_images_that_cost_nothing() -> None:
    order, unit = pack(np.zeros(64, np.int64), np.zeros(64, np.int64), 32)
    assert len(order) == 64
    assert np.bincount(unit).tolist() == [32, 32]


def test_ids_sort_as_the_units_do() -> None:
    ids = unit_ids(3, np.array([0, 0, 7, 123_456])).to_pylist()
    assert ids == ["03-00000000", "03-00000000", "03-00000007", "03-00123456"]


def test_groups_hold_each_unit_whole_and_dearest_first() -> None:
    step = mixed(1000)
    order, unit = pack(step, step, 16)
    keys = np.array([f"key {i}" for i in range(1000)])[order]
    plan = pa.table({"unit_id": unit_ids(0, unit), "key": keys, "nfe": step[order].astype(np.int32)})
    units = group(plan, ["key", "nfe"])
    assert sorted(units["key"].combine_chunks().flatten().to_pylist()) == sorted(keys.tolist())
    rows = units.to_pylist()
    dearness = [sum(row["nfe"]) + ALONE * len(row["key"]) for row in rows]
    assert units["cost"].to_pylist() == dearness == sorted(dearness, reverse=True)
    members = {one: keys[unit == i].tolist() for i, one in enumerate(dict.fromkeys(unit_ids(0, unit).to_pylist()))}
    assert {row["unit_id"]: row["key"] for row in rows} == members


def test_groups_of_nothing() -> None:
    empty = pa.table(
        {"unit_id": pa.array([], pa.string()), "key": pa.array([], pa.string()), "nfe": pa.array([], pa.int32())}
    )
    assert len(group(empty, ["key"])) == 0


def test_a_million_images_take_no_python_object_each() -> None:
    step = mixed(1_000_000)
    order, unit = pack(step, step, 32)
    plan = pa.table({"unit_id": unit_ids(0, unit), "nfe": step[order].astype(np.int32)})
    units = group(plan, ["nfe"])
    assert units["nfe"].type == pa.list_(pa.int32())
    assert pa.compute.sum(units["images"]).as_py() == 1_000_000
