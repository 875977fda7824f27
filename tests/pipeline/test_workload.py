"""Workloads: histograms of window starts, in packing, in slots and in predictions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from flashray.pipeline import units
from flashray.pipeline.cost import CostModel, predict
from flashray.pipeline.slot_utilization import in_flight
from flashray.pipeline.units import pack
from flashray.pipeline.workload import Workload, workload_of


def drawn(n: int, seed: int = 0) -> tuple[list[np.ndarray], Workload]:
    """(each image's window starts, the workload of them)."""
    random = np.random.default_rng(seed)
    windows = random.integers(1, 12, n)
    starts = [random.integers(0, 9, count) for count in windows]
    return starts, Workload.of_starts(np.concatenate(starts), windows, 1000 * windows)


def test_histograms_hold_what_the_windows_say() -> None:
    starts, load = drawn(50)
    assert load.windows.tolist() == [len(one) for one in starts]
    assert load.evaluations.tolist() == [one.sum() for one in starts]
    assert load.start_step.tolist() == [one.max() for one in starts]
    assert load.mean_nfe == pytest.approx(np.mean([one.mean() for one in starts]))
    order = np.random.default_rng(1).permutation(50)
    taken = load.take(order)
    assert taken.evaluations.tolist() == load.evaluations[order].tolist()
    assert taken.pixels.tolist() == load.pixels[order].tolist()
    for maps, one in zip(load.as_maps().to_pylist(), starts, strict=True):
        steps, counts = np.unique(one, return_counts=True)
        assert maps == list(zip(steps[::-1].tolist(), counts[::-1].tolist(), strict=True))


def test_a_plan_gives_its_workload_back_from_any_slice() -> None:
    _, load = drawn(30)
    touched = [None if n % 3 == 0 else n % 3 == 1 for n in range(30)]
    load = dataclasses.replace(load, touched=np.array([one is not False for one in touched]))
    plan = pa.table({"starts": load.as_maps(), "pixels": load.pixels, "touched": pa.array(touched, pa.bool_())})
    parts = pa.concat_tables([plan.slice(0, 7), plan.slice(7, 9), plan.slice(16)])
    for first, count in ((0, 30), (3, 20), (8, 1), (29, 1), (0, 0)):
        found, expected = workload_of(parts.slice(first, count)), load.take(np.arange(first, first + count))
        for name in ("offsets", "steps", "counts", "pixels", "touched"):
            assert getattr(found, name).tolist() == getattr(expected, name).tolist()


def test_units_hold_like_sizes_and_a_large_photo_alone() -> None:
    random = np.random.default_rng(2)
    windows = np.append(random.integers(1, 30, 200), [9000, 1200, 2000])
    pixels = windows * 16_384
    load = Workload.of_starts(random.integers(0, 4, windows.sum()), windows, pixels)
    order, unit = pack(load, 64, slots=8)
    assert sorted(order.tolist()) == list(range(203))
    assert (np.diff(windows[order]) <= 0).all()
    assert np.array_equal(np.unique(unit), np.arange(unit[-1] + 1))
    totals, images = np.bincount(unit, weights=pixels[order]), np.bincount(unit)
    large = pixels[order] > units.PIXELS
    assert large.sum() == 3
    assert (images[unit[large]] == 1).all()
    assert (totals[images > 1] <= 2 * units.PIXELS).all()


def test_a_large_photo_fills_batches_with_the_windows_that_are_active() -> None:
    starts, slots = np.array([5, 5, 5, 2, 2, 1, 0, 0, 0, 0]), 4
    load = Workload.of_starts(starts, np.array([10]), np.array([1]))
    seconds_S = np.array([1.0, 1.5, 1.9, 2.2])
    expected = useful = batches = 0.0
    for i in range(5):
        active = int((starts > i).sum())
        useful += active
        while active > 0:
            expected += seconds_S[min(active, slots) - 1]
            batches += 1
            active -= slots
    (seconds,), share = in_flight(load, np.array([0]), slots, seconds_S)
    assert seconds == pytest.approx(expected)
    assert share == pytest.approx(useful / (slots * batches))


def test_photos_that_fit_the_slots_share_batches_with_their_windows() -> None:
    several = Workload.of_starts(np.array([4, 4, 3, 3, 2, 2]), np.array([2, 2, 2]), np.array([2, 2, 2]))
    alone = Workload.of_windows(np.array([4, 4, 3, 3, 2, 2]))
    seconds_S = np.array([1.0, 1.5, 1.9, 2.2])
    assert in_flight(several, np.array([0]), 4, seconds_S) == in_flight(alone, np.array([0]), 4, seconds_S)
    mixed = Workload.of_starts(np.array([1] * 9 + [4, 4]), np.array([9, 1, 1]), np.array([9, 1, 1]))
    both, _ = in_flight(mixed, np.array([0]), 4, seconds_S)
    apart, _ = in_flight(mixed, np.array([0, 1]), 4, seconds_S)
    assert both.sum() == pytest.approx(apart.sum())
    assert apart.tolist() == pytest.approx([2 * 2.2 + 1.0, 4 * 1.5])


def test_images_that_are_given_back_cost_no_solver() -> None:
    cost = CostModel((1, 4), (1.0, 2.5), 0.1, 0.25, 0.0, decode_megapixel=3.0, other_megapixel=5.0)
    starts, windows = np.array([2, 0, 0, 0]), np.array([1, 1, 2])
    touched = np.array([True, True, False])
    load = Workload.of_starts(starts, windows, 10_000 * windows, touched)
    assert load.take(np.array([2, 0])).touched.tolist() == [False, True]
    found = predict(load, np.array([0]), 4, 1, cost)
    assert found.solver_seconds == pytest.approx(2 * 1.0 + 2 * (0.1 + 0.01 * 3))
    assert found.wall_seconds == pytest.approx(found.solver_seconds + 3 * 0.25 + 5 * 0.04)


def test_a_prediction_counts_windows_and_megapixels() -> None:
    cost = CostModel(
        *((1, 4), (1.0, 2.5), 0.1, 0.25, 0.0),
        window_pixels=10_000,
        step_megapixel=20.0,
        decode_megapixel=3.0,
        other_megapixel=5.0,
    )
    square = predict(Workload.of_windows(np.array([3]), 10_000), np.array([0]), 4, 1, cost)
    assert square.solver_seconds == pytest.approx(3 * 1.0 + 0.1)  # a one-window image costs what was timed
    photo = Workload.of_starts(np.array([2] * 8 + [0] * 2), np.array([10]), np.array([70_000]))
    found = predict(photo, np.array([0]), 4, 1, cost)
    full_batch = 2.5 - 4 * 20 * 0.01
    solver = 2 * (2 * full_batch + 20 * 0.07) + 0.1 + 3 * 0.06
    assert found.solver_seconds == pytest.approx(solver)
    assert found.wall_seconds == pytest.approx(solver + 0.25 + 5 * 0.06)
