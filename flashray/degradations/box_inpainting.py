"""Box inpainting: a square that is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import Limits, Parameters, between, check_range, draw_seeds
from flashray.degradations.masking import MaskFamily
from flashray.errors import ConfigError
from flashray.seeding import STREAM_OPERATOR, uniform


@dataclass(frozen=True)
class BoxInpainting(MaskFamily):
    """A square of pixels is lost; the squares of one seed are nested in their side."""

    # the range of the square's side in pixels; its position is drawn for each image
    side: tuple[float, float] = (16, 64)

    name: ClassVar[str] = "box_inpainting"
    parameter_names: ClassVar[tuple[str, ...]] = ("box_side", "box_seed")
    limits: ClassVar[Limits] = {"box_side": (0, math.inf, "pixels")}

    def __post_init__(self) -> None:
        check_range("box_inpainting: side", self.side, 0, math.inf, "pixels")

    def check_size(self, size: tuple[int, int]) -> None:
        if self.side[1] > min(size):
            raise ConfigError(
                f"degradation box_inpainting: a box of side {self.side[1]:g} is larger than an image of "
                f"{size[1]} x {size[0]}; give a smaller one"
            )

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        return {"box_side": between(*self.side, severity_B), "box_seed": draw_seeds(generator, len(severity_B))}

    def draw(self, parameters: Parameters, size: tuple[int, int]) -> Tensor:
        return box_mask(parameters["box_side"], parameters["box_seed"], size)


def box_mask(side_B: Tensor, seed_B: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 1, H, W] masks, 0 inside a square of `side` pixels (rounded; cut to the image), 1 outside."""
    place_B2 = uniform(seed_B, 2, STREAM_OPERATOR)
    rows_BH, columns_BW = (_inside(side_B, place_B2[:, axis], size[axis]) for axis in (0, 1))
    inside = rows_BH[:, :, None] & columns_BW[:, None, :]
    return (~inside)[:, None].to(side_B.dtype)


def _inside(side_B: Tensor, place_B: Tensor, length: int) -> Tensor:
    """[B, length]: an interval of `side` pixels; `place` is the share, 0 … 1, of the remaining length before it."""
    side_B1 = side_B.round().clamp(max=length)[:, None].double()
    first_B1 = (place_B[:, None] * (length - side_B1)).floor()
    pixel = torch.arange(length, device=side_B.device)
    return (pixel >= first_B1) & (pixel < first_B1 + side_B1)
