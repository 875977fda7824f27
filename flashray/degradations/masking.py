"""What the inpainting families share: an operator that keeps the known pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations.base import Operator
from flashray.errors import ConfigError


@dataclass(frozen=True)
class Masking(Operator):
    """y = m ⊙ x with m 1 where a pixel is known, 0 (black on the [0, 1] scale) where it is not; its own adjoint.

    The measurement's noise is on all pixels, as in Flash-Diffusion, so that its variance is the mean squared residual
    of a perfect reconstruction whatever the mask.
    """

    mask_B1HW: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.mask_B1HW * x_BCHW

    def adjoint(self, y_BCHW: Tensor) -> Tensor:
        return self.mask_B1HW * y_BCHW

    def blank(self, y_BCHW: Tensor, nothing_BCHW: Tensor) -> Tensor:
        return torch.where(self.mask_B1HW > 0, y_BCHW, nothing_BCHW)


def bind_mask(mask_B1HW: Tensor, size: tuple[int, int]) -> Masking:
    """The operator of given masks; ConfigError names both sizes where they are not of the image's."""
    height, width = mask_B1HW.shape[2:]
    if (height, width) != size:
        raise ConfigError(
            f"the mask has {width} x {height} pixels and its image {size[1]} x {size[0]}; give a mask of the same size"
        )
    return Masking(mask_B1HW)
