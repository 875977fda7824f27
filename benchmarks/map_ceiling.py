"""How well a map of σ̂ orders the positions of a photo, and how well the best map of its spread could.

    python -m benchmarks.map_ceiling FOLDER [--count 32]

The error at one position is one draw: the mean of eight squares. Even a map that knew its variance exactly would not
order the draws exactly. For the ceiling each photo's own errors, divided by σ̂, are shuffled over its positions and
multiplied by σ̂ there: then σ̂ is right by construction, and what is left is chance. Shuffled errors of neighbours are
independent, and real ones are not, so the ceiling of the blocks' means is too high.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import spearman_corrcoef

from flashray.degradations import make_degradation
from flashray.degradations.simulate import degrade_at, spread_noise_std
from flashray.prior import LatentPrior, load_prior
from flashray.severity import SeverityEncoder, estimate
from flashray.severity.encoder import load_severity_encoder
from flashray.training.photo_windows import list_photos, load_fitted

FAMILIES = ("photo", "gaussian_blur", "random_inpainting", "nonlinear_blur")
LEVELS = (0.1, 0.325, 0.55, 0.775, 1.0)
BLOCK = 4  # positions to a side of the blocks whose means are compared as well


def chance(variance_hw: Tensor, error_Chw: Tensor, generator: torch.Generator) -> Tensor:
    """[h, w] mean squared errors that have this variance: the photo's own errors over σ̂, shuffled, times σ̂."""
    white = error_Chw / variance_hw.sqrt()
    order = torch.randperm(variance_hw.numel(), generator=generator)
    return (white.flatten(1)[:, order].reshape(white.shape) * variance_hw.sqrt()).square().mean(dim=0)


def correlations(variance_hw: Tensor, error_Chw: Tensor, generator: torch.Generator) -> Tensor:
    """[4] Spearman: of single positions and of blocks' means, with the errors as they are and with `chance`."""
    errors = (error_Chw.square().mean(dim=0), chance(variance_hw, error_Chw, generator))
    rows = [spearman_corrcoef(variance_hw.flatten(), one.flatten()) for one in errors]
    rows += [spearman_corrcoef(blocks(variance_hw), blocks(one)) for one in errors]
    return torch.stack(rows)


def blocks(map_hw: Tensor) -> Tensor:
    """[n] means of the blocks of a map."""
    return F.avg_pool2d(map_hw[None], BLOCK).flatten()


@torch.no_grad()
def mean_correlations(encoder: SeverityEncoder, prior: LatentPrior, x_NCHW: Tensor) -> Tensor:
    """[4] means over photos and levels of what `correlations` gives."""
    degradation = make_degradation(encoder.degradation, encoder.config.degradation_settings or {})
    noise_std_N = spread_noise_std(encoder.noise_range, 0, len(x_NCHW))
    generator, z0, rows = torch.Generator().manual_seed(0), prior.encode(x_NCHW), []
    for number, level in enumerate(LEVELS):
        seed_N = torch.arange(len(x_NCHW)) * 100 + number
        y = degrade_at(x_NCHW, torch.full((len(x_NCHW),), level), degradation, noise_std_N, seed_N)
        severity = estimate(encoder, prior, y)
        maps = zip(severity.log_variance_Bhw.exp(), severity.z_hat_BCHW - z0, strict=True)
        rows += [correlations(variance, error, generator) for variance, error in maps]
    return torch.stack(rows).nanmean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=32)
    given = parser.parse_args()
    paths = list_photos(given.folder)
    x = load_fitted(paths[:: max(1, len(paths) // given.count)][: given.count], 128)
    prior = load_prior("bundled")
    print(f"{len(x)} photos of 128 pixels at {len(LEVELS)} levels; Spearman within a photo, means\n")
    print(
        f"| family | positions | ceiling | means of {BLOCK} × {BLOCK} positions | ceiling |\n|---|---:|---:|---:|---:|"
    )
    for family in FAMILIES:
        found = mean_correlations(load_severity_encoder(f"bundled:{family}"), prior, x).tolist()
        print(f"| {family} | " + " | ".join(f"{value:.3f}" for value in found) + " |", flush=True)


if __name__ == "__main__":
    main()
