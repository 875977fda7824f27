"""Random inpainting: single pixels are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flashray.degradations.base import Limits, Parameters, between, check_range, draw_seeds
from flashray.degradations.masking import MaskFamily
from flashray.seeding import STREAM_OPERATOR, random_words


@dataclass(frozen=True)
class RandomInpainting(MaskFamily):
    """A random share of the pixels is missing; of one seed, a mask with a smaller share is part of a larger one."""

    # the range of the share of missing pixels (Flash-Diffusion: 0 … 0.8 in training, 0.7 … 0.8 in its tests)
    missing: tuple[float, float] = (0.0, 0.8)
    # true uses one mask for all images, in training and in tests, as Flash-Diffusion's code does; false draws a mask
    # for each image
    paper: bool = False

    name: ClassVar[str] = "random_inpainting"
    parameter_names: ClassVar[tuple[str, ...]] = ("missing", "mask_seed")
    limits: ClassVar[Limits] = {"missing": (0, 1, "shares of the pixels")}

    def __post_init__(self) -> None:
        check_range("random_inpainting: missing", self.missing, 0, 1, "shares of the pixels")

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        seed_B = draw_seeds(None if self.paper else generator, len(severity_B))
        return {"missing": between(*self.missing, severity_B), "mask_seed": seed_B}

    def draw(self, parameters: Parameters, size: tuple[int, int]) -> Tensor:
        return random_mask(parameters["missing"], parameters["mask_seed"], size)


def random_mask(missing_B: Tensor, seed_B: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, 1, H, W] masks, 1 where a pixel is known: exactly round(missing · H · W) of each image's pixels are 0."""
    count = size[0] * size[1]
    rank_BN = random_words(seed_B, count, STREAM_OPERATOR).argsort(dim=1, stable=True).argsort(dim=1)
    known_BN = rank_BN >= (missing_B[:, None] * count).round()
    return known_BN.reshape(-1, 1, *size).to(missing_B.dtype)
