"""Convolution with each image's own kernel and reflect padding, through the Fourier transform."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations.base import AffineOperator
from flashray.degradations.separable import reflection
from flashray.errors import ConfigError


@dataclass(frozen=True)
class KernelBlur(AffineOperator):
    """y = crop(k ⋆ pad(x)), the same kernel in every channel; Aᵀ y = fold(k * embed(y)), fold being padᵀ, is exact."""

    spectrum_BNF: Tensor  # kernels in the Fourier domain at the padded size
    radius: int  # half a kernel's side, and so the padding

    @classmethod
    def of(cls, kernel_BKK: Tensor, size: tuple[int, int]) -> KernelBlur:
        """The blur of images of size (H, W) with kernels of odd side K ≤ 2 min(H, W) - 1; ConfigError if larger."""
        radius = kernel_BKK.shape[1] // 2
        if radius >= min(size):
            raise ConfigError(
                f"a kernel of {kernel_BKK.shape[1]} pixels does not fit an image of {size[1]} x {size[0]}: reflect "
                "padding cannot be wider than the image; give a smaller kernel"
            )
        padded = (size[0] + 2 * radius, size[1] + 2 * radius)
        return cls(torch.fft.rfft2(kernel_BKK, s=padded), radius)

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        for dim in (2, 3):
            x_BCHW = x_BCHW.index_select(dim, reflection(x_BCHW.shape[dim], self.radius, x_BCHW.device))
        # the conjugate makes it a correlation, whose first H x W values do not wrap around
        blurred = torch.fft.rfft2(x_BCHW) * self.spectrum_BNF[:, None].conj()
        return torch.fft.irfft2(blurred, s=x_BCHW.shape[2:])[..., :height, :width]

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        size = y_BCHW.shape[2:]
        padded = tuple(side + 2 * self.radius for side in size)
        x = torch.fft.irfft2(torch.fft.rfft2(y_BCHW, s=padded) * self.spectrum_BNF[:, None], s=padded)
        for dim in (2, 3):
            shape = list(x.shape)
            shape[dim] = size[dim - 2]
            x = x.new_zeros(shape).index_add(dim, reflection(size[dim - 2], self.radius, x.device), x)
        return x
