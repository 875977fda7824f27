"""Gaussian blur of varying standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import AffineOperator, Degradation, Parameters, between
from flashray.errors import ConfigError


@dataclass(frozen=True)
class GaussianBlur(Degradation):
    """Convolution with a Gaussian kernel and reflect padding (Flash-Diffusion: 61×61, std 0.3 … 3.0).

    Attributes:
        std: the range of the kernel's standard deviation in pixels; equal ends fix it.
        kernel_size: odd; the kernel is truncated to it, to 6 std, and to the widest reflect padding of the image.
    """

    std: tuple[float, float] = (0.3, 3.0)
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
        std_B = parameters["blur_std"]
        height, width = size
        return SeparableBlur(blur_matrix(std_B, self.kernel_size, height), blur_matrix(std_B, self.kernel_size, width))


@dataclass(frozen=True)
class SeparableBlur(AffineOperator):
    """y = R x Cᵀ with banded matrices that hold the reflected border, so that the adjoint Rᵀ y C is exact."""

    rows_BHH: Tensor
    columns_BWW: Tensor

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        return self.rows_BHH[:, None] @ x_BCHW @ self.columns_BWW[:, None].mT

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        return self.rows_BHH[:, None].mT @ y_BCHW @ self.columns_BWW[:, None]


def blur_matrix(std_B: Tensor, kernel_size: int, length: int) -> Tensor:
    """[B, length, length] matrices of the 1-D blur with reflect padding (the border pixel is not repeated)."""
    radius = min(kernel_size // 2, length - 1)
    offset_K = torch.arange(-radius, radius + 1, device=std_B.device)
    weight_BK = torch.exp(-0.5 * (offset_K[None, :] / std_B[:, None]) ** 2)
    weight_BK = weight_BK * (offset_K.abs()[None, :] <= (6 * std_B[:, None] + 0.5).floor())
    weight_BK = weight_BK / weight_BK.sum(dim=1, keepdim=True)
    source_HK = (torch.arange(length, device=std_B.device)[:, None] + offset_K[None, :]).abs()
    source_HK = torch.where(source_HK >= length, 2 * (length - 1) - source_HK, source_HK)
    batch = len(std_B)
    matrix = torch.zeros(batch, length, length, dtype=weight_BK.dtype, device=std_B.device)
    source, weight = source_HK.expand(batch, -1, -1), weight_BK[:, None, :].expand(-1, length, -1)
    return matrix.scatter_add_(2, source, weight)
