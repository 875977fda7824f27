"""Kernel distance between two sets of features, without a Gaussian model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.distances.frechet import comparable


def kernel_distance(
    x_ND: Tensor, y_MD: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The squared maximum mean discrepancy under the kernel (xᵀy/D + 1)³: (mean, standard deviation) over subsets.

    KID of Bińkowski et al. 2018 where the features are Inception's. Unlike the Fréchet distance it is unbiased: its
    expectation does not depend on how many images there are, and where the two distributions are equal it is zero, so
    that a single value may lie below.

    Args:
        x_ND, y_MD: a feature vector a row.
        subsets, subset_size: random subsets of each set, without replacement; where a set is smaller than
            `subset_size` the subsets have its size, and where both are taken whole there is one subset, and its
            deviation is 0.

    Raises:
        ValueError: as `frechet_distance` does, and for subsets of less than two images.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"kernel distance: give subsets ≥ 1 of subset_size ≥ 2, not {subsets} of {subset_size}")
    x, y = comparable(x_ND, y_MD)
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        return _discrepancy(x, y), 0.0
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        rows, others = (torch.from_numpy(generator.permutation(len(z))[:size]) for z in (x, y))
        values.append(_discrepancy(x[rows.to(x.device)], y[others.to(y.device)]))
    return float(np.mean(values)), float(np.std(values))


def _discrepancy(x_ND: Tensor, y_ND: Tensor) -> float:
    """The unbiased estimate: no image is paired with itself (Gretton et al. 2012, Lemma 6)."""
    within = _mean_of_pairs(x_ND) + _mean_of_pairs(y_ND)
    return float(within - 2 * polynomial_kernel(x_ND, y_ND).mean())


def _mean_of_pairs(x_ND: Tensor) -> Tensor:
    kernel_NN = polynomial_kernel(x_ND, x_ND)
    count = len(x_ND)
    return (kernel_NN.sum() - kernel_NN.trace()) / (count * (count - 1))


def polynomial_kernel(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3
