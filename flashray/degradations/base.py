"""Degradations: a family of operators A with a severity, and an operator bound to the parameters of a batch."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from flashray.errors import ConfigError

T = TypeVar("T")
Parameters = dict[str, Tensor]
Limits = Mapping[str, tuple[float, float, str]]  # (least, most, unit) of a parameter
SEEDS = 2**24  # seeds of operators are below it, so that float32 holds them exactly


class Operator(ABC):
    """A with the parameters of B images: a dataclass whose tensors have one row for each image.

    Images are [B, 3, H, W] and measurements [B, 3, h, w], both in [-1, 1].
    """

    @abstractmethod
    def A(self, x_BCHW: Tensor) -> Tensor:
        """A(x), without noise."""

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        """Mᵀ y of an operator A(x) = M x + b; TypeError where A is nonlinear."""
        raise TypeError(f"{type(self).__name__} is nonlinear and has no adjoint")

    def select(self, rows: Tensor) -> Self:
        """The operator of some of the images: `rows` are indices, or a mask."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names}
        return type(self)(**{n: v[rows] if isinstance(v, Tensor) else v for n, v in values.items()})

    def picture(self, y_BCHW: Tensor) -> Tensor:
        """y in [-1, 1] at the image's size, for display; most measurements have that size already."""
        return y_BCHW

    def pseudo_image(self, y_BCHW: Tensor) -> Tensor:
        """y in [-1, 1] at the image's size, as input of networks; missing parts may be filled in."""
        return self.picture(y_BCHW)

    def blank(self, y_BCHW: Tensor, nothing_BCHW: Tensor) -> Tensor:
        """y, replaced by `nothing` (black and noise, [-1, 1]) at the pixels that hold no information on the image."""
        return y_BCHW


class AffineOperator(Operator):
    """A(x) = M x + b with b = M 1 - 1: M acts on the [0, 1] scale, where black is 0.

    Solvers apply `A_adjoint` to residuals only, where b cancels.
    """

    @abstractmethod
    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        """M x, for images as for differences of images."""

    @abstractmethod
    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        """Mᵀ y."""

    def A(self, x_BCHW: Tensor) -> Tensor:
        return 2 * self.A_linear((x_BCHW + 1) / 2) - 1


@dataclass(frozen=True)
class Degradation(ABC):
    """A family of operators; its fields are the family's settings.

    Parameters are a few numbers from which `bind` makes the operator; where an operator has more randomness than its
    severity (a mask, a camera's path), one parameter is a seed, a whole number below SEEDS.
    """

    name: ClassVar[str]
    linear: ClassVar[bool]
    # Scalar parameters of one image, by the names that a manifest's columns use; the first one is the severity
    parameter_names: ClassVar[tuple[str, ...]]
    # What `check_parameters` holds scalar parameters to; names that end with _seed are seeds
    limits: ClassVar[Limits] = {}
    # Whether a parameter `mask`, [B, 1, H, W] with 1 where a pixel is known, may replace them
    takes_mask: ClassVar[bool] = False
    # Whether the damage of given images is unknown: they have no parameters, and no solver may use the operator
    unknown: ClassVar[bool] = False

    @abstractmethod
    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        """The parameters at the severities in [0, 1]: 0 is the mildest of the family's range, 1 the hardest.

        `generator` draws the parameters that the severity does not decide; without it they are equal for all images.
        """

    def check_parameters(self, parameters: Parameters) -> None:
        """Raise ConfigError if a parameter is out of the range in which the operator is defined."""
        for name, value_B in parameters.items():
            if name.endswith("_seed"):
                check_seeds(f"{self.name}: {name}", value_B)
            elif name in self.limits:
                check_values(f"{self.name}: {name}", value_B, *self.limits[name])

    @abstractmethod
    def bind(self, parameters: Parameters, size: tuple[int, int]) -> Operator:
        """The operator of B images of size (H, W) with these parameters, on the parameters' device."""

    def sample_parameters(self, generator: torch.Generator, n: int) -> Parameters:
        """Draw the parameters of n images over the family's range of severities; every tensor is [n, …] on the CPU."""
        return self.parameters_at(torch.rand(n, generator=generator), generator)

    def fixed_parameters(self) -> Parameters | None:
        """The one set of parameters ([1, …] each) that the settings allow, or None where they allow several."""
        one, other = (
            self.parameters_at(torch.full((1,), severity), torch.Generator().manual_seed(seed))
            for severity, seed in ((0.0, 1), (1.0, 2))
        )
        return one if all(torch.equal(one[name], other[name]) for name in one) else None

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) of the only images that the operator takes; None where it takes several sizes."""
        return None

    def check_size(self, size: tuple[int, int]) -> None:  # noqa: B027  (most families fit any size)
        """Raise ConfigError if the family's settings do not fit images of size (H, W)."""

    def check_weights(self) -> None:  # noqa: B027  (most families have none)
        """Raise ConfigError if the operator has weights, and their file does not hold them."""

    def weights_sha256(self) -> str | None:
        """The hash of the operator's weights, if it has any; the bytes of a run depend on them."""
        return None

    def measurement_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the measurements of images of size (H, W)."""
        return size

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the images whose measurements are of size (h, w)."""
        return size


def alike(items: Iterable[T], of: Callable[[T], tuple[Tensor, Parameters]]) -> list[list[T]]:
    """The items that share a batch: `of` says the image or measurement of each, and the parameters.

    The former have one shape, the latter the same names and shapes: one image may have a mask, and the next numbers.
    """
    kinds: dict[Hashable, list[T]] = {}
    for item in items:
        image, parameters = of(item)
        shapes = frozenset((name, value.shape) for name, value in parameters.items())
        kinds.setdefault((image.shape, shapes), []).append(item)
    return list(kinds.values())


def draw_seeds(generator: torch.Generator | None, n: int) -> Tensor:
    """[n] seeds for operators, as float32 like the other parameters; zeros without a generator."""
    if generator is None:
        return torch.zeros(n)
    return torch.randint(SEEDS, (n,), generator=generator).float()


def check_seeds(name: str, seed_B: Tensor) -> None:
    """Raise ConfigError unless the seeds are whole numbers that float32 holds exactly."""
    if not bool(((seed_B >= 0) & (seed_B < SEEDS) & (seed_B == seed_B.floor())).all()):
        raise ConfigError(f"{name} must be a whole number, 0 to {SEEDS - 1:,}, got {seed_B.tolist()}")


def check_values(name: str, value_B: Tensor, least: float, most: float, unit: str) -> None:
    """Raise ConfigError unless the values are finite, and from least to most."""
    if not bool((torch.isfinite(value_B) & (value_B >= least) & (value_B <= most)).all()):
        bound = f"≥ {least:g} and finite" if math.isfinite(least) else "finite"
        bound = f"from {least:g} to {most:g}" if math.isfinite(most) else bound
        raise ConfigError(f"{name} must be {bound}, in {unit}, got {value_B.tolist()}")


def check_range(name: str, limits: tuple[float, float], least: float, most: float, unit: str) -> None:
    """Raise ConfigError unless limits are (low, high) with least ≤ low ≤ high ≤ most, all finite.

    `name` is that of the family and the setting, `unit` the setting's.
    """
    if not (least <= limits[0] <= limits[1] <= most and math.isfinite(limits[1])):
        bound = f"{least:g} ≤ low ≤ high" + (f" ≤ {most:g}" if math.isfinite(most) else "")
        raise ConfigError(f"degradation {name} is {list(limits)}; give [low, high] with {bound}, in {unit}")


def between(low: float, high: float, severity_B: Tensor) -> Tensor:
    """low + (high - low) · severity."""
    return low + (high - low) * severity_B
