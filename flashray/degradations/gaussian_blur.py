"""Gaussian blur of varying standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import AffineOperator, Degradation, Parameters, between
from flashray.degradations.separable import convolve, convolve_adjoint, gaussian_kernel
from flashray.errors import ConfigError


@dataclass(frozen=True)
class GaussianBlur(Degradation):
    """Convolution with a Gaussian kernel and reflect padding (Flash-Diffusion: 61×61, std 0.3 … 3.0)."""

    std: tuple[float, float] = (0.3, 3.0)  # the range of the kernel's standard deviation in pixels; equal ends fix it
    # odd; the kernel is truncated to it, to 6 std, and to the widest reflect padding of the image
    kernel_size: int = 61

    name: ClassVar[str] = "gaussian_blur"
    linear: ClassVar[bool] = True
    parameter_names: ClassVar[tuple[str, ...]] = ("blur_std",)

    def __post_init__(self) -> None:
        low, high = self.std
        if not 0 < low <= high < math.inf:
            raise ConfigError(f"degradation gaussian_blur: std is {list(self.std)}; give 0 < low <= high, in pixels")
        if not isinstance(self.kernel_size, int) or self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ConfigError(f"degradation gaussian_blur: kernel_size is {self.kernel_size}; give an odd number ≥ 3")

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        return {"blur_std": between(*self.std, severity_B)}

    def check_parameters(self, parameters: Parameters) -> None:
        std_B = parameters["blur_std"]
        if not bool((torch.isfinite(std_B) & (std_B > 0)).all()):
            raise ConfigError(f"gaussian_blur: blur_std must be positive and finite, got {std_B.tolist()}")

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> SeparableBlur:
        return SeparableBlur.gaussian(parameters["blur_std"], self.kernel_size, size)


@dataclass(frozen=True)
class SeparableBlur(AffineOperator):
    """y = R x Cᵀ, convolutions along the rows and along the columns with reflected borders; the adjoint is exact."""

    rows_BK: Tensor  # of the vertical convolution
    columns_BK: Tensor  # of the horizontal one

    @classmethod
    def gaussian(cls, std_B: Tensor, kernel_size: int, size: tuple[int, int]) -> SeparableBlur:
        """The Gaussian blur of images of size (H, W); kernels are cut to kernel_size, 6 std, and what the image has."""
        return cls(*(gaussian_kernel(std_B, kernel_size, length) for length in size))

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        return convolve(convolve(x_BCHW, self.rows_BK, dim=2), self.columns_BK, dim=3)

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        return convolve_adjoint(convolve_adjoint(y_BCHW, self.rows_BK, dim=2), self.columns_BK, dim=3)
