"""Fréchet distance between two sets of features, each modelled as a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(x_ND: Tensor, y_MD: Tensor) -> float:
    """The squared 2-Wasserstein distance of the Gaussians fitted to two sets of features, ≥ 0.

    ‖μ - μ'‖² + tr Σ + tr Σ' - 2 tr (Σ Σ')^½ with unbiased covariances (Dowson & Landau 1982; FID, Heusel et al. 2017,
    where the features are Inception's), in float64. It is biased upwards, the more so the fewer the images: compare
    only distances that were taken with the same numbers of images.

    Args:
        x_ND, y_MD: a feature vector a row; N and M may differ, and may be smaller than D.

    Raises:
        ValueError: for other than two finite matrices of one width with at least two rows each.
    """
    x, y = comparable(x_ND, y_MD)
    shift = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return float(shift + _bures(_root_of_samples(x), _root_of_samples(y)))


def bures_distance(covariance_DD: Tensor, other_DD: Tensor) -> float:
    """tr Σ + tr Σ' - 2 tr (Σ Σ')^½, the part of the Fréchet distance that comes from the covariances; ≥ 0.

    Both are symmetric and positive semidefinite, singular ones included.
    """
    return float(_bures(_root(covariance_DD), _root(other_DD)))


def comparable(x_ND: Tensor, y_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features in float64; ValueError where they cannot be compared."""
    for features in (x_ND, y_MD):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != x_ND.shape[1]:
            shapes = f"{tuple(x_ND.shape)} and {tuple(y_MD.shape)}"
            raise ValueError(f"features are [N, D] and [M, D] with N, M ≥ 2, not {shapes}")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features must be finite")
    return x_ND.double(), y_MD.double()


def _bures(root_KD: Tensor, other_LD: Tensor) -> Tensor:
    """With Σ = RᵀR and Σ' = R'ᵀR', tr (Σ Σ')^½ is the sum of the singular values of R R'ᵀ.

    This avoids the root of a product of matrices, which few samples leave singular, and complex values.
    """
    overlap = torch.linalg.svdvals(root_KD @ other_LD.T).sum()
    return (root_KD.square().sum() + other_LD.square().sum() - 2 * overlap).clamp(min=0)


def _root(covariance_DD: Tensor) -> Tensor:
    """R with RᵀR = Σ, from the eigenvalues of Σ."""
    values, vectors = torch.linalg.eigh(covariance_DD.double())
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def _root_of_samples(x_ND: Tensor) -> Tensor:
    """R with RᵀR the unbiased covariance of the rows; at most D rows."""
    centred = (x_ND - x_ND.mean(dim=0)) / (len(x_ND) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred
