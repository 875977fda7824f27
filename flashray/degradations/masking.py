"""What the inpainting families share: an operator that keeps the known pixels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Operator, Parameters, check_flags
from flashray.degradations.gaussian_blur import SeparableBlur
from flashray.errors import ConfigError

FILL_STDS = (16.0, 4.0, 1.0)  # pixels
FILL_TRUST = 0.02  # share of known pixels at which a weighted mean is half believed


@dataclass(frozen=True)
class Masking(Operator):
    """y = m ⊙ x with m 1 where a pixel is known, 0 (black on the [0, 1] scale) where it is not; its own adjoint.

    The measurement's noise is on all pixels, as in Flash-Diffusion, so that its variance is the mean squared residual
    of a perfect reconstruction whatever the mask.

    Attributes:
        filled: whether severity encoders see y with its holes filled in, or y itself.
    """

    mask_B1HW: Tensor
    filled: bool = True

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.mask_B1HW * x_BCHW

    def adjoint(self, y_BCHW: Tensor) -> Tensor:
        return self.mask_B1HW * y_BCHW

    def blank(self, y_BCHW: Tensor, nothing_BCHW: Tensor) -> Tensor:
        return torch.where(self.mask_B1HW > 0, y_BCHW, nothing_BCHW)

    def pseudo_image(self, y_BCHW: Tensor) -> Tensor:
        return fill_in(y_BCHW, self.mask_B1HW) if self.filled else y_BCHW


def fill_in(y_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """y with its missing pixels as weighted means of the known ones around them (Knutsson & Westin 1993).

    From wide to narrow Gaussian weights, each trusted as far as it finds known pixels. An autoencoder's encoder, which
    is what severity encoders start from, reads such an image nearly as it reads a whole one, and black holes not at
    all.
    """
    known = mask_B1HW * y_BCHW
    filled = known.sum(dim=(2, 3), keepdim=True) / mask_B1HW.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    filled = filled.expand_as(y_BCHW)
    for std in FILL_STDS:
        height, width = y_BCHW.shape[2:]
        blur = SeparableBlur.gaussian(y_BCHW.new_full((1,), std), 2 * max(height, width) - 1, (height, width))
        weight = blur.forward(mask_B1HW)
        mean = blur.forward(known) / weight.clamp(min=1e-6)
        trust = weight / (weight + FILL_TRUST)
        filled = trust * mean + (1 - trust) * filled
    return torch.where(mask_B1HW > 0, y_BCHW, filled)


@dataclass(frozen=True)
class MaskFamily(Degradation):
    """What is lost is known: the mask comes with the image, or the family draws one.

    Attributes:
        fill: severity encoders see y with its holes filled in from around; false shows them y itself, as the paper.
    """

    fill: bool = field(default=True, kw_only=True)

    linear: ClassVar[bool] = True
    takes_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_flags(self.name, fill=self.fill)

    def check_parameters(self, parameters: Parameters) -> None:
        if "mask" not in parameters:
            self.check_drawn(parameters)

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> Masking:
        if "mask" in parameters:
            return bind_mask(parameters["mask"], size, self.fill)
        return Masking(self.draw(parameters, size), self.fill)

    @abstractmethod
    def check_drawn(self, parameters: Parameters) -> None:
        """`check_parameters` where no mask is given."""

    @abstractmethod
    def draw(self, parameters: Parameters, size: tuple[int, int]) -> Tensor:
        """[B, 1, H, W] masks, 1 where a pixel is known."""


def bind_mask(mask_B1HW: Tensor, size: tuple[int, int], filled: bool) -> Masking:
    """The operator of given masks; ConfigError names both sizes where they are not of the image's."""
    height, width = mask_B1HW.shape[2:]
    if (height, width) != size:
        raise ConfigError(
            f"the mask has {width} x {height} pixels and its image {size[1]} x {size[0]}; give a mask of the same size"
        )
    return Masking(mask_B1HW, filled)
