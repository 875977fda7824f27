"""Training of a severity encoder."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.functional import spearman_corrcoef

from flashray.build import noise_range
from flashray.degradations import Degradation, make_degradation
from flashray.degradations.base import Parameters
from flashray.degradations.simulate import degrade, degrade_at, spread_noise_std
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.prior.geometry import check_crop
from flashray.severity.encoder import Severity, SeverityEncoder, estimate
from flashray.severity.fusion import fuse
from flashray.severity.loss import FLOOR, map_loss, normal_loss, position_error
from flashray.training.loop import Task
from flashray.training.photo_windows import WHOLE, WINDOW_ZOOM, add_grain, random_views, vary

ORDERING_LEVELS = 10
HARDLY_VISIBLE = 1e-4  # mean square on [-1, 1]: 46 dB


@dataclass(frozen=True)
class BeyondConfig:
    """What a share of each batch is degraded with instead: more than the family's ranges, so that σ̂ rises there too.

    The encoder promises the family's ranges, not these.

    Attributes:
        share: of the views of each batch, rounded.
        settings: replace those of the same names in degradation.settings.
        noise_std: its range, on the [0, 1] scale.
    """

    share: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    noise_std: float | list[float] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"severity.beyond.share is {self.share}; give a share from 0 to below 1")
        if "preset" in self.settings:
            raise ConfigError("severity.beyond.settings: preset is for degradation.settings; name the settings here")
        _ = self.noise_range  # raises

    @property
    def noise_range(self) -> tuple[float, float]:
        """(low, high) of noise_std; equal where it is one number."""
        return noise_range(self.noise_std, "severity.beyond.noise_std")


@dataclass(frozen=True)
class SeverityConfig:
    """The network, and the objective's weights.

    Attributes:
        widths: channels of the trunk at each level, from the latents' resolution down.
        blocks: its residual blocks at each level.
        lambda_sigma: weight of the term of σ̂ beside that of ẑ.
        lambda_parameters: weight of the term of the degradation's parameters.
        crop: side of the training views in pixels; 0 is the prior's size.
        vary: share of the views that are turned and get other colours and contrast.
        window: side of the photos' windows that views are cut from; 0 is 1.5 times the prior's size.
        narrowest: side of the narrowest crop, as a multiple of the view's.
        widest: side of the widest crop.
        whole: share of the batches whose crops are 1.5 times the view's, so that views have the scale of whole photos.
        grain: std of the strongest grain that is part of a clean view, on the [0, 1] scale.
        part: `all` trains everything but the fusion weight and the residual; `fusion` trains the weight's head alone,
            with the prior's decoder, and `residual` the residual's network alone.
        beyond: what a share of the views is degraded with instead, outside of the family's ranges.
    """

    widths: tuple[int, ...] = (96, 144, 192)
    blocks: tuple[int, ...] = (3, 3, 3)
    lambda_sigma: float = 0.1
    lambda_parameters: float = 0.02
    crop: int = 0
    vary: float = 0.0
    window: int = 0
    narrowest: float = 1.0
    widest: float = WINDOW_ZOOM
    whole: float = WHOLE
    grain: float = 0.0
    part: Literal["all", "fusion", "residual"] = "all"
    beyond: BeyondConfig = field(default_factory=BeyondConfig)

    def __post_init__(self) -> None:
        if not 0.1 <= self.narrowest <= self.widest:
            raise ConfigError(
                f"severity.narrowest and severity.widest are {self.narrowest} and {self.widest}; give two multiples of "
                "the view's side from .1 on, the smaller one first"
            )
        if not 0 <= self.whole <= 1 or not self.grain >= 0:
            raise ConfigError(
                f"severity.whole and severity.grain are {self.whole} and {self.grain}; give a share from 0 to 1 and a "
                "standard deviation ≥ 0"
            )


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
        check_crop("severity.crop", config.crop, prior.autoencoder)
        self.model, self.prior, self.degradation, self.config = model, prior, degradation, config
        self.noise, self.val = noise, val_NCHW
        settings = {one.name: getattr(degradation, one.name) for one in fields(degradation)} | config.beyond.settings
        self.harder = make_degradation(degradation.name, settings)
        model.requires_grad_(config.part == "all")
        model.weight_head.requires_grad_(config.part == "fusion")
        if model.net.detail is not None:
            model.net.detail.requires_grad_(config.part == "residual")
        elif config.part == "residual":
            raise ConfigError(f"severity.part residual: encoders of {degradation.name} have none; photo has one")
        side = config.crop or prior.sample_size
        degradation.check_size((side, side))
        self.harder.check_size((side, side))

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        config = self.config
        side = config.crop or self.prior.sample_size
        x = random_views(window_BCHW, side, generator, config.widest, config.narrowest, config.whole)
        x = vary(x, config.vary, generator) if config.vary else x
        x = add_grain(x, config.grain, generator) if config.grain else x
        with torch.no_grad():
            y, parameters = self.measure(x, generator)
            e = self.prior.encode(y).float()
        severity = self.model(y, e)
        if config.part == "fusion":
            return {"loss": relative_error(self.fused(y, severity), y, x)}
        if config.part == "residual":
            return {"loss": relative_error(severity.corrected(y), y, x)}
        with torch.no_grad():
            z0 = self.prior.encode(x).float()
        terms = map_loss(severity.z_hat_BCHW.float(), z0, severity.log_variance_Bhw.float(), config.lambda_sigma)
        if self.model.parameter_names:
            wanted = self.model.in_units(parameters)
            mean, log_variance = severity.parameters_BP2.float().unbind(2)
            terms["parameters"] = normal_loss((mean - wanted).square() + FLOOR, log_variance)
            terms["loss"] = terms["loss"] + config.lambda_parameters * terms["parameters"]
        return terms

    def measure(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Parameters]:
        """Measurements of a batch and their parameters, the first share `beyond.share` of them harder."""
        beyond = self.config.beyond
        count = round(beyond.share * len(x_BCHW))
        if not count:
            return degrade(x_BCHW, self.degradation, self.noise, generator)
        y, parameters = degrade(x_BCHW[count:], self.degradation, self.noise, generator)
        harder, with_parameters = degrade(x_BCHW[:count], self.harder, beyond.noise_range, generator)
        both = {name: torch.cat([with_parameters[name], value]) for name, value in parameters.items()}
        return torch.cat([harder, y]), both

    def fused(self, y_BCHW: Tensor, severity: Severity) -> Tensor:
        """y + R fused with D(ẑ) by the weights as they are."""
        with torch.no_grad():
            decoded = self.prior.decode(severity.z_hat_BCHW.float()).clamp(-1, 1)
        weight, size = severity.weight_Bhw.float(), (y_BCHW.shape[2], y_BCHW.shape[3])
        return fuse(severity.corrected(y_BCHW), decoded, weight, self.model.factor, size)

    def parts(self) -> list[nn.Module]:
        return [self.model.net, self.prior.autoencoder.encoder]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Figures of `severity_figures` on the validation photos."""
        return severity_figures(self.model, self.prior, self.degradation, self.noise, self.val)


def relative_error(image_BCHW: Tensor, y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean over images of ‖image - x‖² over ‖y - x‖²: slight damage counts like heavy one.

    Without the division slight damage would not count, and what is hardly damaged would be harmed. Of an undamaged
    image any change counts much.
    """
    error_B, given_B = ((image - x_BCHW).square().mean(dim=(1, 2, 3)) for image in (image_BCHW, y_BCHW))
    return (error_B / (given_B + HARDLY_VISIBLE)).mean()


@torch.no_grad()
def severity_figures(
    encoder: SeverityEncoder, prior: LatentPrior, degradation: Degradation, noise: tuple[float, float], x_NCHW: Tensor
) -> dict[str, float]:
    """How well σ̂ predicts severity, on clean photos in [-1, 1] degraded at ORDERING_LEVELS evenly spaced levels each.

    With a range of noise every photo has its own noise_std, the same at every level. σ̂ and σ̄ of an image are root mean
    squares over its positions.

    The figures: latent_mse, and latent_mse_of_y with E(y) as ẑ; sigma_error, mean |σ̂ - σ̄|; spearman_sigma, Spearman
    of σ̂ with the true error σ̄ over all images and levels; spearman_map, of the maps over the positions of an image,
    mean over images; spearman_level and spearman_level_true, of σ̂ and of σ̄ with the level across photos; ordering and
    ordering_true, the share of pairs of levels of one photo that σ̂, or σ̄, orders as the levels are; y_psnr,
    corrected_psnr, decoded_psnr and fused_psnr of y, y + R, D(ẑ) and the fused image.
    """
    level_L = torch.linspace(0, 1, ORDERING_LEVELS)
    predicted, true, maps, rows = [], [], [], []
    for start in range(0, len(x_NCHW), 16):
        x = x_NCHW[start : start + 16].to(prior.device)
        z0 = prior.encode(x)
        noise_std_B = spread_noise_std(noise, start, len(x))
        for index, level in enumerate(level_L):
            seed_B = torch.arange(start, start + len(x), device=x.device) * 100 + index
            y = degrade_at(x, level.expand(len(x)), degradation, noise_std_B, seed_B)
            severity = estimate(encoder, prior, y)
            error = position_error(severity.z_hat_BCHW, z0)
            predicted.append(severity.log_variance_Bhw.exp().mean(dim=(1, 2)).sqrt().cpu())
            true.append(error.mean(dim=(1, 2)).sqrt().cpu())
            maps += [
                spearman_corrcoef(one.flatten(), other.flatten())
                for one, other in zip(severity.log_variance_Bhw, error, strict=True)
            ]
            decoded = prior.decode(severity.z_hat_BCHW).clamp(-1, 1)
            p = severity.corrected(y)
            fused = fuse(p, decoded, severity.weight_Bhw, encoder.factor, (x.shape[2], x.shape[3]))
            images = (y, p.clamp(-1, 1), decoded, fused.clamp(-1, 1))
            squares = [(image - x).square().mean(dim=(1, 2, 3)) for image in images]
            of_y = position_error(prior.encode(y), z0).mean(dim=(1, 2))
            rows.append(torch.stack([error.mean(dim=(1, 2)), of_y, *squares]).cpu())
    # batches × levels × images → images × levels
    grid_hat, grid_true = (_grid(values, len(x_NCHW)) for values in (predicted, true))
    level = level_L.expand_as(grid_hat)
    row = torch.cat(rows, dim=1)
    y_psnr, corrected_psnr, decoded_psnr, fused_psnr = (10 * (4 / row[2:].clamp(min=4e-6)).log10()).mean(dim=1).tolist()
    return {
        "latent_mse": row[0].mean().item(),
        "latent_mse_of_y": row[1].mean().item(),
        "sigma_error": (grid_hat - grid_true).abs().mean().item(),
        "sigma_hat_mean": grid_hat.mean().item(),
        "sigma_true_mean": grid_true.mean().item(),
        "spearman_sigma": spearman_corrcoef(grid_hat.flatten(), grid_true.flatten()).item(),
        "spearman_map": torch.stack(maps).nanmean().item(),
        "spearman_level": spearman_corrcoef(grid_hat.flatten(), level.flatten()).item(),
        "spearman_level_true": spearman_corrcoef(grid_true.flatten(), level.flatten()).item(),
        "ordering": ordering_accuracy(grid_hat),
        "ordering_true": ordering_accuracy(grid_true),
        "y_psnr": y_psnr,
        "corrected_psnr": corrected_psnr,
        "decoded_psnr": decoded_psnr,
        "fused_psnr": fused_psnr,
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
