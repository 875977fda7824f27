"""The Fréchet distance against closed forms, and against scipy's root of the product of covariances."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from benchmarks.distances.frechet import bures_distance, frechet_distance


def gaussian(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(count: int, mean_D: Tensor, factor_DD: Tensor, seed: int) -> Tensor:
    """Samples whose mean is exactly `mean` and whose unbiased covariance is exactly factor factorᵀ."""
    x = gaussian(count, len(mean_D), seed)
    x = x - x.mean(dim=0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return white @ factor_DD.T + mean_D


def test_two_gaussians_with_aligned_axes():
    """‖μ - μ'‖² + Σ (s - s')², for sets of different sizes."""
    means, deviations = gaussian(2, 6, 0), gaussian(2, 6, 1).abs()
    x, y = (
        exactly(count, mean, std.diag(), seed)
        for count, mean, std, seed in zip((40, 900), means, deviations, (2, 3), strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_any_two_gaussians_against_the_root_of_the_product():
    factors = gaussian(16, 8, 4).reshape(2, 8, 8)
    x, y = (exactly(60, gaussian(1, 8, 5)[0], factor, 6) for factor in factors)
    covariances = [factor @ factor.T for factor in factors]
    root = torch.from_numpy(sqrtm((covariances[0] @ covariances[1]).numpy()).real.copy())
    expected = covariances[0].trace() + covariances[1].trace() - 2 * root.trace()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-8)
    assert bures_distance(*covariances) == pytest.approx(expected.item(), rel=1e-8)


@pytest.mark.parametrize("count", [2, 5, 64, 300])
def test_equal_sets_have_no_distance_however_few_they_are(count: int):
    """With fewer images than features the covariance is singular."""
    x = 10 * gaussian(count, 64, 7) + 100
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-8 * x.square().sum()


def test_few_samples_against_the_product_of_singular_covariances():
    """The singular values of X Yᵀ are the roots of the eigenvalues of the product of the covariances."""
    x, y = gaussian(5, 20, 8), 2 * gaussian(7, 20, 9) + 0.3
    values = torch.linalg.eigvals(x.T.cov() @ y.T.cov())
    traces = x.var(dim=0).sum() + y.var(dim=0).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * values.sqrt().real.sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-5)


def test_a_turn_of_the_features_changes_nothing_and_a_shift_counts_by_its_square():
    x, y = gaussian(30, 10, 10), 1.5 * gaussian(50, 10, 11)
    turn = torch.linalg.qr(gaussian(10, 10, 12)).Q
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    assert frechet_distance(x, x + 3) == pytest.approx(90.0, rel=1e-9)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3)),
        (torch.zeros(4, 3), torch.zeros(4, 2)),
        (torch.zeros(4), torch.zeros(4)),
        (torch.zeros(4, 3), torch.full((4, 3), torch.nan)),
    ],
)
def test_what_cannot_be_compared_is_refused(x: Tensor, y: Tensor):
    with pytest.raises(ValueError, match="features"):
        frechet_distance(x, y)
