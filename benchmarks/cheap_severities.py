"""Severities that cost next to nothing, to compare the severity encoder with, and what makes a σ̂ of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import Operator
from flashray.errors import ConfigError

NAMES = ("wavelet_noise", "residual_std")

# Daubechies' wavelet with two vanishing moments (1988): what is linear in a picture leaves no trace in its details
_ROOT = math.sqrt(3)
_HIGH_PASS = tuple(value / (4 * math.sqrt(2)) for value in (1 - _ROOT, _ROOT - 3, 3 + _ROOT, -1 - _ROOT))
_NORMAL_MEDIAN = 0.6744897501960817  # the median of |n| for standard normal n


def wavelet_noise(y_BCHW: Tensor) -> Tensor:
    """The measurement's noise by its finest details: median |d| / 0.6745 of the diagonal wavelet band, per image.

    Donoho & Johnstone 1994, section 4: few of the finest diagonal details of a picture are large, and the median does
    not see those, so that what it sees is noise. Blind to a blur, and to whatever else the measurement lacks.

    Args:
        y_BCHW: measurements in [-1, 1], at least 4 pixels a side; all channels count together.

    Returns:
        [B] estimates of noise_std, on the [0, 1] scale.
    """
    high = torch.tensor(_HIGH_PASS, dtype=y_BCHW.dtype, device=y_BCHW.device)
    kernel = torch.outer(high, high)[None, None]
    detail_BN = F.conv2d(y_BCHW.flatten(0, 1)[:, None], kernel, stride=2).reshape(len(y_BCHW), -1)
    return detail_BN.abs().median(dim=1).values / _NORMAL_MEDIAN / 2  # /2: from [-1, 1] to [0, 1]


@torch.no_grad()
def residual_std(y_BCHW: Tensor, z_hat_BCHW: Tensor, operator: Operator, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """How badly the estimate explains the measurement: the standard deviation of y - A(D(ẑ)), per image.

    With a perfect ẑ it is the measurement's noise; what A takes away of an error of ẑ it cannot see.

    Args:
        y_BCHW: measurements in [-1, 1].
        z_hat_BCHW: latent estimates, such as the severity encoder's.
        operator: A, bound to the images' parameters.
        decode: the prior's D.

    Returns:
        [B], on the [0, 1] scale.
    """
    return (y_BCHW - operator.A(decode(z_hat_BCHW))).flatten(1).std(dim=1) / 2


@dataclass(frozen=True)
class Calibration:
    """A monotone map from a cheap severity to σ̂, so that Flash can start from it: `start.start_step(map(severity_B))`.

    Fitted by isotonic regression on validation images: linear between the knots, constant beyond them.

    Attributes:
        name: the severity that it was fitted for, one of NAMES.
        severity: the knots, ascending.
        sigma: σ̂ at the knots, monotone, ≥ 0.
    """

    name: str
    severity: tuple[float, ...]
    sigma: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"calibration: severity {self.name!r} is not known; known: {', '.join(NAMES)}")
        steps = [b - a for a, b in zip(self.sigma, self.sigma[1:], strict=False)]
        monotone = all(step >= 0 for step in steps) or all(step <= 0 for step in steps)
        ascending = all(a < b for a, b in zip(self.severity, self.severity[1:], strict=False))
        finite = all(math.isfinite(value) for value in self.severity + self.sigma)
        if not (
            len(self.severity) == len(self.sigma) > 0 and monotone and ascending and finite and min(self.sigma) >= 0
        ):
            raise ConfigError(f"calibration of {self.name}: knots must ascend and σ̂ be monotone, finite and ≥ 0")

    @classmethod
    def fit(cls, name: str, severity_N: Tensor, sigma_N: Tensor) -> Calibration:
        """The monotone map, rising or falling, of least squared error in σ.

        Args:
            severity_N: the cheap severity of validation images.
            sigma_N: their true latent error σ̄ (`Restorer.true_sigma`).

        Raises:
            ValueError: unless both are [N] with N ≥ 1 and finite.
        """
        if severity_N.shape != sigma_N.shape or severity_N.ndim != 1 or not len(severity_N):
            shapes = f"{tuple(severity_N.shape)} and {tuple(sigma_N.shape)}"
            raise ValueError(f"severities and their σ̄ are [N] each with N ≥ 1, not {shapes}")
        if not bool((torch.isfinite(severity_N) & torch.isfinite(sigma_N)).all()):
            raise ValueError("severities and their σ̄ must be finite")
        order = severity_N.double().argsort()
        severity, sigma = severity_N.double()[order].tolist(), sigma_N.double()[order].tolist()
        fits = {sign: isotonic(severity, [sign * value for value in sigma]) for sign in (1, -1)}
        sign = min(fits, key=lambda sign: sum(block.error for block in fits[sign]))
        knots = {x: sign * block.value for block in fits[sign] for x in (block.low, block.high)}
        return cls(name, tuple(knots), tuple(knots.values()))

    def __call__(self, severity_B: Tensor) -> Tensor:
        """[B] σ̂, in the severity's dtype; NaN, which starts at the full chain, where the severity is NaN."""
        knots, values = (torch.tensor(v, dtype=torch.float64, device=severity_B.device) for v in self._padded())
        x = severity_B.double().clamp(self.severity[0], self.severity[-1])
        right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
        share = (x - knots[right - 1]) / (knots[right] - knots[right - 1])
        return torch.lerp(values[right - 1], values[right], share).to(severity_B.dtype)

    def _padded(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The knots, with one more where there is only one: a constant is a line too."""
        return (*self.severity, self.severity[-1] + 1), (*self.sigma, self.sigma[-1])


class Block(NamedTuple):
    """Neighbours on x that the fit gives one value."""

    low: float
    high: float
    value: float
    size: int = 1
    error: float = 0.0  # squared, of the value

    def join(self, other: Block) -> Block:
        size = self.size + other.size
        value = (self.value * self.size + other.value * other.size) / size
        between = (self.value - other.value) ** 2 * self.size * other.size / size
        return Block(self.low, other.high, value, size, self.error + other.error + between)


def isotonic(x: list[float], y: list[float]) -> list[Block]:
    """The non-decreasing fit of y over ascending x by least squares; equal x share a block.

    Pool adjacent violators (Ayer et al. 1955): a block that is not above the one before it is joined to it.
    """
    blocks: list[Block] = []
    for block in (Block(a, a, b) for a, b in zip(x, y, strict=True)):
        while blocks and (block.value <= blocks[-1].value or block.low == blocks[-1].high):
            block = blocks.pop().join(block)
        blocks.append(block)
    return blocks
