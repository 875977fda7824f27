"""The severity encoder: y ↦ (ẑ, σ̂ at every position, fusion weight, the degradation's parameters, residual)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from flashray.build import noise_range
from flashray.checkpoints import load_saved
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.prior.geometry import latent_geometry
from flashray.severity.trunk import Heads
from flashray.strips import Strips, strips_of
from flashray.windows import pad_to

LOG_VARIANCE = (-9.2, 4.6)  # ln σ̂² is held in it: σ̂ from .01 to 10
STRIP_ROWS = 256  # latent positions; part of what bytes depend on


class Severity(NamedTuple):
    """What a severity encoder says of B measurements whose latents have h × w positions."""

    z_hat_BCHW: Tensor  # ẑ, in the prior's unit-variance latents
    log_variance_Bhw: Tensor  # ln σ̂² of every position: σ̂² predicts the mean over channels of (ẑ - z₀)²
    weight_Bhw: Tensor  # fusion weight, 0 … 1: the share of D(z) in the restored image where no operator is known
    # (mean, ln variance) of each of P parameters, a mean over positions weighted by their precision. In units of
    # `parameter_ranges`: -1 at the low end, 1 at the high one
    parameters_BP2: Tensor
    # R, [B, 3, H, W] on [-1, 1]: y + R is an estimate of the image in pixels, without the autoencoder's loss. It has no
    # channels where the encoder predicts none
    residual_BCHW: Tensor

    def corrected(self, y_BCHW: Tensor) -> Tensor:
        """y + R of images of the residual's size; y where there is none."""
        return y_BCHW + self.residual_BCHW.to(y_BCHW) if self.residual_BCHW.shape[1] else y_BCHW

    @property
    def sigma_Bhw(self) -> Tensor:
        """σ̂ of every position, in float32."""
        return (0.5 * self.log_variance_Bhw.float()).exp()


class SeverityEncoder(ModelMixin, ConfigMixin):
    """Predicts from a degraded image y the latent ẑ of the clean image, and how wrong it expects to be where.

    ẑ = E(y) + Δ: the prior's own latent of y, and what a trunk of residual blocks on the latent grid changes in it. The
    trunk sees y itself too, its pixels gathered at the latents' positions: noise and sharpness are visible there. Where
    nothing is wrong Δ is 0, and so is the error. Heads on the trunk's features give the rest of `Severity`; a small
    network on the features and y gives the residual.

    Args:
        latent_channels, factor: of the prior's latents; factor is pixels to a side of a position.
        scale, shift: the prior's latent scaling, one value a channel or one for all.
        degradation, degradation_settings, noise_std: the family that it was trained on (`noise_std` on [0, 1],
            one number or [low, high]).
        parameter_ranges: name of each parameter that it predicts and its [low, high] in training.
        widths, blocks: of the trunk's levels.
        residual: whether it predicts the residual, which is of use where no operator is known.
    """

    latent_scale: Tensor
    latent_shift: Tensor

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        factor: int,
        scale: list[float],
        shift: list[float],
        degradation: str,
        degradation_settings: dict[str, Any] | None = None,
        noise_std: float | list[float] = 0.05,
        parameter_ranges: dict[str, list[float]] | None = None,
        widths: Sequence[int] = (96, 144, 192),
        blocks: Sequence[int] = (3, 3, 3),
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.parameter_names = tuple(parameter_ranges or {})
        self.given = (latent_channels, 1, 1, *([2 * len(self.parameter_names)] if self.parameter_names else []))
        taken, detail = 3 * factor**2 + latent_channels, factor if residual else 0
        self.net = Heads(taken, widths, blocks, self.given, detail)
        self.register_buffer("latent_scale", torch.tensor(scale).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("latent_shift", torch.tensor(shift).reshape(1, -1, 1, 1), persistent=False)
        self.sha256 = ""

    @classmethod
    def from_prior(
        cls,
        prior: LatentPrior,
        degradation: str,
        degradation_settings: dict[str, Any],
        noise_std: float | list[float],
        **settings: Any,
    ) -> SeverityEncoder:
        """A new severity encoder for this prior's latents, with further arguments of the class; its ẑ is E(y)."""
        channels, factor = latent_geometry(prior.autoencoder)
        scale, shift = prior.scale.flatten().tolist(), prior.shift.flatten().tolist()
        family = {"degradation": degradation, "degradation_settings": degradation_settings, "noise_std": noise_std}
        model = cls(latent_channels=channels, factor=factor, scale=scale, shift=shift, **family, **settings)
        return model.to(prior.device)

    @property
    def weight_head(self) -> nn.Module:
        """The head of the fusion weight, which is trained after ẑ and σ̂."""
        return self.net.heads[2]

    def in_units(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """[B, P] parameters in units of their ranges: -1 at the low end, 1 at the high one."""
        values = []
        for name, (low, high) in self.config.parameter_ranges.items():
            values.append(2 * (parameters[name] - low) / (high - low) - 1)
        return torch.stack(values, dim=1).float()

    def values(self, severity: Severity) -> dict[str, float]:
        """The first image's parameters in their own units, within the ranges of training."""
        ranges = self.config.parameter_ranges or {}
        units = severity.parameters_BP2[0, :, 0].clamp(-1, 1).tolist()
        return {
            name: low + (unit + 1) / 2 * (high - low)
            for (name, (low, high)), unit in zip(ranges.items(), units, strict=True)
        }

    @property
    def degradation(self) -> str:
        """The name of the degradation family that this encoder was trained on."""
        return str(self.config.degradation)

    @property
    def noise_range(self) -> tuple[float, float]:
        """(low, high) of the noise_std, on the [0, 1] scale, that this encoder was trained with."""
        return noise_range(self.config.noise_std)

    def check_prior(self, prior: LatentPrior, name: str) -> None:
        """Raise ConfigError, with this encoder's name, if it was trained for another prior's latents."""
        pairs = ((self.latent_scale, prior.scale), (self.latent_shift, prior.shift))
        same = latent_geometry(prior.autoencoder) == (self.config.latent_channels, self.factor)
        if not same or not all(one.shape == other.shape and one.allclose(other.to(one)) for one, other in pairs):
            raise ConfigError(
                f"severity encoder {name} was trained for another prior than {prior.name}: their latents differ in "
                "size or scale; train one with flashray train severity, or name the prior that it belongs to"
            )

    def forward(self, y_BCHW: Tensor, e_BCHW: Tensor) -> Severity:
        """What it says of measurements y in [-1, 1], their sides multiples of the latent factor, and of E(y)."""
        height, width = e_BCHW.shape[2:]
        seen = torch.cat([F.pixel_unshuffle(y_BCHW, self.factor), e_BCHW.to(y_BCHW)], dim=1)
        cut = self.net.trunk.cut
        seen = pad_to(seen, (height + -height % cut, width + -width % cut))
        said = self.net(seen) if seen.shape[2] <= STRIP_ROWS else self._strips(self.net, seen)
        said = said[..., :height, :width]
        given = sum(self.given)
        change, log_variance, weight, *parameter = said[:, :given].split(self.given, dim=1)
        no_parameter = change.new_zeros(len(change), 0, 2)
        no_residual = change.new_zeros(len(change), 0, *y_BCHW.shape[2:])
        return Severity(
            e_BCHW + change,
            log_variance.squeeze(1).clamp(*LOG_VARIANCE),
            weight.squeeze(1).sigmoid(),
            mean_over_positions(parameter[0].unflatten(1, (-1, 2))) if parameter else no_parameter,
            F.pixel_shuffle(said[:, given:], self.factor) if self.config.residual else no_residual,
        )

    @cached_property
    def _strips(self) -> Strips:
        """How it runs over tall images."""
        return strips_of(self.net, 3 * self.factor**2 + self.given[0], Fraction(1), STRIP_ROWS, self.net.trunk.cut)


def mean_over_positions(parameter_BP2hw: Tensor) -> Tensor:
    """[B, P, 2] mean and ln variance of parameters that every position estimates: each counts by its precision.

    The variance is that of one position of mean precision: neighbours see the same, so more of them add little.
    """
    mean, log_variance = parameter_BP2hw.flatten(3).unbind(2)
    precision = (-log_variance.clamp(*LOG_VARIANCE)).exp()
    total = precision.sum(dim=2)
    return torch.stack([(mean * precision).sum(dim=2) / total, (precision.shape[2] / total).log()], dim=2)


@torch.no_grad()
def estimate(encoder: SeverityEncoder, prior: LatentPrior, seen_BCHW: Tensor) -> Severity:
    """What the encoder says, in float32, of measurements in [-1, 1], computed in the prior's precision."""
    with prior.autocast():
        severity = encoder(seen_BCHW, prior.encode(seen_BCHW))
    return Severity(*(value.float() for value in severity))


def load_severity_encoder(source: str, device: str | torch.device = "cpu") -> SeverityEncoder:
    """Load `bundled:<degradation>` or a saved folder for inference; ConfigError names the bundled ones."""
    return load_saved(
        SeverityEncoder, source, device, kind="severity encoder", room="severity", job="flashray train severity"
    )
