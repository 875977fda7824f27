"""What a degradation is: a family of operators A with a severity, and one operator bound to per-image parameters."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


class Operator(ABC):
    """A with the parameters of B images, a dataclass whose tensors have a row an image.

    Images are [B, 3, H, W]; `forward` and `adjoint` act on the [0, 1] scale.
    """

    @abstractmethod
    def forward(self, x_BCHW: Tensor) -> Tensor:
        """A(x), without noise."""

    def adjoint(self, y_BCHW: Tensor) -> Tensor:
        """Aᵀ y; only linear operators have one."""
        raise TypeError(f"{type(self).__name__} is nonlinear and has no adjoint")

    def select(self, rows: Tensor) -> Self:
        """The operator of some of the images: `rows` are indices, or a mask."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in names}
        return type(self)(**{n: v[rows] if isinstance(v, Tensor) else v for n, v in values.items()})

    def measure(self, x_BCHW: Tensor) -> Tensor:
        """A on the [-1, 1] scale: 2 A((x + 1)/2) - 1."""
        return 2 * self.forward((x_BCHW + 1) / 2) - 1


@dataclass(frozen=True)
class Degradation(ABC):
    """A family of operators; its fields are the family's settings."""

    name: ClassVar[str]
    linear: ClassVar[bool]
    # Scalar parameters of one image, by the names that a manifest's columns use; the first one is the severity
    parameter_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def sample_parameters(self, generator: torch.Generator, n: int) -> Parameters:
        """Draw the parameters of n images over the family's range of severities; every tensor is [n, …] on the CPU."""

    @abstractmethod
    def parameters_at(self, severity_B: Tensor) -> Parameters:
        """The parameters at the severities in [0, 1]: 0 is the mildest of the family's range, 1 the hardest."""

    @abstractmethod
    def check_parameters(self, parameters: Parameters) -> None:
        """Raise ConfigError if a parameter is out of the range in which the operator is defined."""

    @abstractmethod
    def bind(self, parameters: Parameters, size: tuple[int, int]) -> Operator:
        """The operator of B images of size (H, W) with these parameters, on the parameters' device."""
