"""Training of a severity encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from flashray.degradations import Degradation
from flashray.degradations.noise import spread_noise_std
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.severity.encoder import SeverityEncoder
from flashray.severity.loss import Target, error_std, severity_loss
from flashray.training.augment import vary
from flashray.training.degrade import degrade, degrade_at
from flashray.training.loop import Task
from flashray.training.photo_windows import WINDOW_ZOOM, random_views

ORDERING_LEVELS = 10


@dataclass(frozen=True)
class SeverityConfig:
    """The objective's weights (Flash-Diffusion, severity encoding) and its target for σ̂.

    Attributes:
        lambda_sigma, lambda_image: weights of the terms of σ̂ and of the decoded image.
        target: what the term of σ̂ compares: standard deviations, their logarithms, or variances.
        crop: side of the training views in pixels; smaller views give more pairs in the same time, and the prior's size
            trains σ̂ on the area that it is used on; 0 is the prior's size.
        vary: share of the views that are turned and get other colours and contrast (`augment.vary`).
        widest: side of the widest crop, as a multiple of the view's.
        levels: number of random severities at which each view is degraded in one step.
        lambda_order: weight of the differences of σ̂ - σ̄ between these severities; 0 is the paper's objective.
        only_head: train the head for σ̂ alone; ẑ does not change.

    Raises:
        ConfigError: if `levels` is not positive, or `lambda_order` has no two levels to compare.
    """

    lambda_sigma: float = 1.0
    lambda_image: float = 1.0
    target: Target = "std"
    crop: int = 0
    vary: float = 0.0
    widest: float = WINDOW_ZOOM
    levels: int = 1
    lambda_order: float = 0.0
    only_head: bool = False

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ConfigError(f"severity.levels is {self.levels}; give at least 1")
        if self.lambda_order and self.levels == 1:
            raise ConfigError("severity.lambda_order compares levels of a photo: give severity.levels of 2 or more")


class SeverityTask(Task):
    """Degrade each view with its own random severity, encode, and compare with the clean view's latent."""

    model: SeverityEncoder

    def __init__(
        self,
        model: SeverityEncoder,
        prior: LatentPrior,
        degradation: Degradation,
        noise: tuple[float, float],
        config: SeverityConfig,
        val_NCHW: Tensor,
    ) -> None:
        super().__init__()
        self.model, self.prior, self.degradation, self.config = model, prior, degradation, config
        self.noise, self.val = noise, val_NCHW
        if config.only_head:
            model.requires_grad_(False)
            model.head.requires_grad_(True)
        side = config.crop or prior.sample_size
        degradation.check_size((side, side))

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        size = self.config.crop or self.prior.sample_size
        x = random_views(window_BCHW, size, generator, self.config.widest)
        x = vary(x, self.config.vary, generator) if self.config.vary else x
        with torch.no_grad():
            z0 = self.prior.encode(x).float()
        x, z0 = (value.repeat_interleave(self.config.levels, dim=0) for value in (x, z0))
        y = self.degrade(x, generator)
        z_hat, sigma_hat = self.model(y)
        x_hat = self.prior.decode(z_hat).float() if self.config.lambda_image else None
        return severity_loss(
            z_hat.float(),
            z0,
            sigma_hat.float(),
            x_hat,
            x,
            self.config.lambda_sigma,
            self.config.lambda_image,
            self.config.target,
            self.config.lambda_order,
            self.config.levels,
        )

    def degrade(self, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        """A measurement of each image, of its own random severity, as input of the encoder."""
        return degrade(x_BCHW, self.degradation, self.noise, generator)

    def parts(self) -> list[nn.Module]:
        return [self.prior.autoencoder.encoder, self.prior.autoencoder.decoder]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures of `severity_figures` on the validation photos."""
        return severity_figures(self.model, self.prior, self.degradation, self.noise, self.val)


@torch.no_grad()
def severity_figures(
    encoder: SeverityEncoder, prior: LatentPrior, degradation: Degradation, noise: tuple[float, float], x_NCHW: Tensor
) -> dict[str, float]:
    """How well σ̂ predicts severity, on clean photos in [-1, 1] degraded at ORDERING_LEVELS evenly spaced levels each.

    With a range of noise every photo has its own noise_std, the same at every level.

    Returns:
        latent_mse; sigma_error, mean |σ̂ - σ̄|; spearman_sigma, Spearman of σ̂ with the true error σ̄ over all images and
        levels; spearman_level and spearman_level_true, of σ̂ and of σ̄ with the level across photos; ordering and
        ordering_true, the share of pairs of levels of one photo that σ̂, or σ̄, orders as the levels are.
    """
    level_L = torch.linspace(0, 1, ORDERING_LEVELS)
    predicted, true, squares = [], [], 0.0
    for start in range(0, len(x_NCHW), 16):
        x = x_NCHW[start : start + 16].to(prior.device)
        z0 = prior.encode(x)
        noise_std_B = spread_noise_std(noise, start, len(x))
        for index, level in enumerate(level_L):
            seed_B = torch.arange(start, start + len(x), device=x.device) * 100 + index
            y = degrade_at(x, level.expand(len(x)), degradation, noise_std_B, seed_B)
            z_hat, sigma_hat = encoder(y)
            predicted.append(sigma_hat.float().cpu())
            true.append(error_std(z_hat, z0).float().cpu())
            squares += (z_hat - z0).square().mean().item() * len(x) / (len(x_NCHW) * ORDERING_LEVELS)
    # batches × levels × images → images × levels
    grid_hat, grid_true = (_grid(values, len(x_NCHW)) for values in (predicted, true))
    level = level_L.expand_as(grid_hat)
    return {
        "latent_mse": squares,
        "sigma_error": (grid_hat - grid_true).abs().mean().item(),
        "sigma_hat_mean": grid_hat.mean().item(),
        "sigma_true_mean": grid_true.mean().item(),
        "spearman_sigma": spearman_corrcoef(grid_hat.flatten(), grid_true.flatten()).item(),
        "spearman_level": spearman_corrcoef(grid_hat.flatten(), level.flatten()).item(),
        "spearman_level_true": spearman_corrcoef(grid_true.flatten(), level.flatten()).item(),
        "ordering": ordering_accuracy(grid_hat),
        "ordering_true": ordering_accuracy(grid_true),
    }


def _grid(batches: list[Tensor], images: int) -> Tensor:
    groups = [torch.stack(batches[i : i + ORDERING_LEVELS], dim=1) for i in range(0, len(batches), ORDERING_LEVELS)]
    grid = torch.cat(groups)
    assert grid.shape == (images, ORDERING_LEVELS)
    return grid


def ordering_accuracy(values_NL: Tensor) -> float:
    """The share of pairs of levels i < j of the same row whose values are in ascending order."""
    difference = values_NL[:, None, :] - values_NL[:, :, None]
    upper = torch.triu(torch.ones(difference.shape[1:], dtype=torch.bool), diagonal=1)
    return (difference[:, upper] > 0).double().mean().item()
