"""Bootstrap interval of a mean over images."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of the resampling, not its result


def mean_interval(
    values: Iterable[float | None], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of the values and its percentile bootstrap interval: (mean, low, high).

    Missing values (None, NaN) are left out; with none left the answer is three NaN. The same values, in the same order,
    with the same seed give the same interval. ValueError for a confidence outside (0, 1) or less than one resample.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    sample = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if not len(sample):
        return np.nan, np.nan, np.nan
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _DRAWS_AT_ONCE // len(sample))
    for first in range(0, resamples, rows):
        part = means[first : first + rows]
        part[:] = sample[generator.integers(len(sample), size=(len(part), len(sample)))].mean(axis=1)
    # Order statistics rather than interpolation, so that an infinite PSNR gives an infinite bound and not NaN.
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(sample.mean()), float(low), float(high)


def paired_interval(
    values: Iterable[float | None],
    others: Iterable[float | None],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of value - other over the same images, and its interval: (mean, low, high).

    Differences between images that both methods share cancel, so this separates two methods even where the intervals of
    their means overlap. An image without one of the values is left out; equal values, infinite ones included, differ by
    0. ValueError when the lengths differ, and as `mean_interval`.
    """

    def difference(value: float | None, other: float | None) -> float | None:
        if value is None or other is None:
            return None
        return 0.0 if value == other else value - other

    differences = [difference(value, other) for value, other in zip(values, others, strict=True)]
    return mean_interval(differences, confidence, resamples, seed)
