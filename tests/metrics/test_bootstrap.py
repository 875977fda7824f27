from __future__ import annotations

import math

import numpy as np
import pytest

from flashray.metrics import bootstrap, mean_interval


@pytest.fixture
def sample() -> list[float]:
    return np.random.default_rng(7).normal(27.0, 3.0, size=200).tolist()


def test_interval_holds_the_mean_and_is_as_wide_as_theory_says(sample: list[float]) -> None:
    mean, low, high = mean_interval(sample)
    assert mean == pytest.approx(np.mean(sample))
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(sample) / math.sqrt(len(sample)), rel=0.1)


def test_covers_the_true_mean_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    intervals = [mean_interval(generator.exponential(1.0, size=60)) for _ in range(200)]
    covered = np.mean([low <= 1.0 <= high for _, low, high in intervals])
    assert 0.88 <= covered <= 0.99


def test_depends_on_the_values_alone(sample: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    interval = mean_interval(sample)
    assert mean_interval(sample) == interval
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 1000)  # how much memory it may take changes nothing
    assert mean_interval(sample) == interval


def test_an_interval_of_many_values_is_the_resampled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = np.random.default_rng(3).exponential(5.0, size=20_000)
    resampled = mean_interval(sample)
    monkeypatch.setattr(bootstrap, "_MANY", 10_000)
    normal = mean_interval(sample)
    assert normal != resampled
    width = resampled[2] - resampled[1]
    assert normal == pytest.approx(resampled, abs=0.05 * width)
    assert mean_interval([*sample, math.inf]) == (math.inf, math.inf, math.inf)


def test_missing_values_are_left_out(sample: list[float]) -> None:
    assert mean_interval([None, *sample, math.nan]) == mean_interval(sample)
    assert all(math.isnan(value) for value in mean_interval([None, math.nan]))
    assert all(math.isnan(value) for value in mean_interval([]))


def test_one_value_and_infinite_values() -> None:
    assert mean_interval([5.0]) == (5.0, 5.0, 5.0)
    mean, low, high = mean_interval([30.0] * 50 + [math.inf])
    assert (mean, low, high) == (math.inf, 30.0, math.inf)
