"""The common part of the inpainting families: an operator that keeps the known pixels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import AffineOperator, Degradation, Parameters
from flashray.degradations.gaussian_blur import SeparableBlur
from flashray.errors import ConfigError

FILL_STDS = (16.0, 4.0, 1.0)  # pixels
FILL_TRUST = 0.02  # share of known pixels at which a weighted mean has half of its full weight


@dataclass(frozen=True)
class Masking(AffineOperator):
    """A(x) = m ⊙ (x + 1) - 1: m is 1 where a pixel is known and 0 where it is missing; missing pixels are black.

    The measurement's noise is on all pixels, as in Flash-Diffusion, so that its variance is the mean squared residual
    of a perfect reconstruction for any mask.
    """

    mask_B1HW: Tensor
    filled: bool = True  # whether the input of severity encoders is y with its holes filled in, or y itself

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        return self.mask_B1HW * x_BCHW

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        return self.mask_B1HW * y_BCHW

    def blank(self, y_BCHW: Tensor, nothing_BCHW: Tensor) -> Tensor:
        return torch.where(self.mask_B1HW > 0, y_BCHW, nothing_BCHW)

    def pseudo_image(self, y_BCHW: Tensor) -> Tensor:
        return fill_in(y_BCHW, self.mask_B1HW) if self.filled else y_BCHW


def fill_in(y_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """y with its missing pixels as weighted means of the known ones around them (Knutsson & Westin 1993).

    Three passes from wide to narrow Gaussian weights; each pass has the more weight the more known pixels it covers.
    Severity encoders start from an autoencoder's encoder, which handles such an image almost like a complete one, and
    fails on black holes.
    """
    known = mask_B1HW * y_BCHW
    filled = known.sum(dim=(2, 3), keepdim=True) / mask_B1HW.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    filled = filled.expand_as(y_BCHW)
    for std in FILL_STDS:
        height, width = y_BCHW.shape[2:]
        blur = SeparableBlur.gaussian(y_BCHW.new_full((1,), std), 2 * int(6 * std + 0.5) + 1, (height, width))
        weight = blur.A_linear(mask_B1HW)
        mean = blur.A_linear(known) / weight.clamp(min=1e-6)
        trust = weight / (weight + FILL_TRUST)
        filled = trust * mean + (1 - trust) * filled
    return torch.where(mask_B1HW > 0, y_BCHW, filled)


@dataclass(frozen=True)
class MaskFamily(Degradation):
    """A family with a known mask, which is given with the image or drawn."""

    # the input of severity encoders is y with its holes filled in; false gives them y itself, as in the paper
    fill: bool = field(default=True, kw_only=True)

    linear: ClassVar[bool] = True
    takes_mask: ClassVar[bool] = True

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> Masking:
        mask = parameters["mask"] if "mask" in parameters else self.draw(parameters, size)
        height, width = mask.shape[2:]
        if (height, width) != size:
            raise ConfigError(
                f"the mask has {width} x {height} pixels and its image {size[1]} x {size[0]}; give one of the same size"
            )
        return Masking(mask, self.fill)

    @abstractmethod
    def draw(self, parameters: Parameters, size: tuple[int, int]) -> Tensor:
        """[B, 1, H, W] masks, 1 where a pixel is known."""
