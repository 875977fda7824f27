"""Bootstrap interval of a mean over images."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist

import numpy as np

_CONFIDENCE, _RESAMPLES = 0.95, 2000
_MANY = 100_000  # values of which the interval is not resampled
_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of the resampling, not its result


def mean_interval(values: Iterable[float | None]) -> tuple[float, float, float]:
    """Mean of the values and its 95 % percentile bootstrap interval: (mean, low, high).

    Missing values (None, NaN) are left out; with none left the answer is three NaN. The same values in the same order
    give the same interval. Of more than 100,000 values it is the normal distribution's, which means of resampled
    values then have (central limit theorem): resampling millions takes minutes.
    """
    sample = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    sample = sample[~np.isnan(sample)]
    if not len(sample):
        return np.nan, np.nan, np.nan
    if len(sample) > _MANY:
        mean = float(sample.mean())
        error = float(sample.std()) / len(sample) ** 0.5 if np.isfinite(mean) else 0.0
        half = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * error
        return mean, mean - half, mean + half
    generator = np.random.default_rng(0)
    means = np.empty(_RESAMPLES)
    rows = max(1, _DRAWS_AT_ONCE // len(sample))
    for first in range(0, _RESAMPLES, rows):
        part = means[first : first + rows]
        part[:] = sample[generator.integers(len(sample), size=(len(part), len(sample)))].mean(axis=1)
    # Order statistics rather than interpolation, so that an infinite PSNR gives an infinite bound and not NaN.
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], method="inverted_cdf")
    return float(sample.mean()), float(low), float(high)
