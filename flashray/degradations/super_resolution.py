"""Super-resolution: fewer pixels, each the mean of an area."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import AffineOperator, Degradation, Parameters
from flashray.errors import ConfigError


@dataclass(frozen=True)
class SuperResolution(Degradation):
    """Each pixel of y is the mean of scale × scale pixels of x, so y is `scale` times smaller; there are no parameters.

    The block averaging of DDRM (Kawar et al., NeurIPS 2022) and of the papers that compare with it.
    """

    scale: int = 4  # a whole number that divides the image's sides, such as 2 or 4

    name: ClassVar[str] = "super_resolution"
    linear: ClassVar[bool] = True
    parameter_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or isinstance(self.scale, bool) or self.scale < 2:
            raise ConfigError(f"degradation super_resolution: scale is {self.scale!r}; give a whole number ≥ 2")

    def check_size(self, size: tuple[int, int]) -> None:
        if size[0] % self.scale or size[1] % self.scale:
            raise ConfigError(
                f"degradation super_resolution: scale {self.scale} does not divide an image of {size[1]} x {size[0]}"
            )

    def measurement_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] // self.scale, size[1] // self.scale

    def image_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] * self.scale, size[1] * self.scale

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        return {}

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> AreaMean:
        self.check_size(size)
        return AreaMean(self.scale)


@dataclass(frozen=True)
class AreaMean(AffineOperator):
    """y = mean of x over scale × scale pixels; Aᵀ y repeats each pixel, divided by scale²."""

    scale: int

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        return F.avg_pool2d(x_BCHW, self.scale)

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        repeated = y_BCHW.repeat_interleave(self.scale, dim=2).repeat_interleave(self.scale, dim=3)
        return repeated / self.scale**2

    def picture(self, y_BCHW: Tensor) -> Tensor:
        size = [side * self.scale for side in y_BCHW.shape[2:]]
        return F.interpolate(y_BCHW, size=size, mode="bicubic", align_corners=False)
