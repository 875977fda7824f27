"""JPEG artefacts: the arithmetic of baseline JPEG, without a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import Degradation, Limits, Operator, Parameters, between, check_range

# Quantisation tables of ITU-T T.81, Annex K, at quality 50
LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF's, from RGB


@dataclass(frozen=True)
class Jpeg(Degradation):
    """Baseline JPEG at a quality of 1 … 100 (libjpeg's scale), as an operator with a gradient.

    Forward is the codec's own arithmetic: YCbCr, chroma halved by area means, 8×8 DCT, rounding to multiples of the
    quantisation table, and back, chroma by linear interpolation; nothing is rounded to 8 bits or clipped. The backward
    pass treats rounding as the identity (straight-through: Bengio et al. 2013), so the gradient is that of the codec
    with an infinitely fine table. Simulated measurements are made with the same operator that solvers use.
    """

    quality: tuple[float, float] = (5, 60)  # the range, lowest first; the lowest is the hardest
    subsampling: bool = True  # 4:2:0 (half the chroma's resolution, what cameras and Pillow do) or none, 4:4:4

    name: ClassVar[str] = "jpeg"
    linear: ClassVar[bool] = False
    parameter_names: ClassVar[tuple[str, ...]] = ("quality",)
    limits: ClassVar[Limits] = {"quality": (1, 100, "libjpeg's scale")}

    def __post_init__(self) -> None:
        check_range("jpeg: quality", self.quality, 1, 100, "libjpeg's scale")

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        low, high = self.quality
        return {"quality": between(high, low, severity_B)}

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> Codec:
        quality_B = parameters["quality"]
        return Codec(quantisation(quality_B, LUMA), quantisation(quality_B, CHROMA), self.subsampling)


@dataclass(frozen=True)
class Codec(Operator):
    """The operator of `Jpeg`; tables are [B, 8, 8] quantisation steps in units of 1/255."""

    luma_B88: Tensor
    chroma_B88: Tensor
    subsampling: bool

    def A(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        block = 16 if self.subsampling else 8
        # the border pixel is repeated up to whole blocks, as encoders do
        padded = F.pad(x_BCHW, (0, -width % block, 0, -height % block), mode="replicate")
        matrix = torch.tensor(_YCC, dtype=x_BCHW.dtype, device=x_BCHW.device)
        ycc = torch.einsum("ij,bjhw->bihw", matrix, 127.5 * (padded + 1))
        luma = through_blocks(ycc[:, :1] - 128, self.luma_B88) + 128
        if self.subsampling:
            chroma = through_blocks(F.avg_pool2d(ycc[:, 1:], 2), self.chroma_B88)
            chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            chroma = through_blocks(ycc[:, 1:], self.chroma_B88)
        decoded = torch.einsum("ij,bjhw->bihw", matrix.inverse(), torch.cat([luma, chroma], dim=1))
        return decoded[..., :height, :width] / 127.5 - 1


def quantisation(quality_B: Tensor, base: tuple[int, ...]) -> Tensor:
    """[B, 8, 8] tables of libjpeg's quality scale: whole numbers from 1 to 255."""
    quality_B11 = quality_B.round().clamp(1, 100)[:, None, None]
    percent = torch.where(quality_B11 < 50, (5000 / quality_B11).floor(), 200 - 2 * quality_B11)
    table = torch.tensor(base, dtype=quality_B.dtype, device=quality_B.device).reshape(8, 8)
    return ((table * percent + 50) / 100).floor().clamp(1, 255)


def through_blocks(plane_BCHW: Tensor, table_B88: Tensor) -> Tensor:
    """DCT of 8×8 blocks, rounding to the table's multiples, inverse DCT; sides are multiples of 8."""
    batch, channels, height, width = plane_BCHW.shape
    basis = dct_basis().to(plane_BCHW)
    blocks = plane_BCHW.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    ratio = basis @ blocks @ basis.T / table_B88[:, None, None, None]
    rounded = ratio + (ratio.round() - ratio).detach()
    decoded = basis.T @ (rounded * table_B88[:, None, None, None]) @ basis
    return decoded.transpose(3, 4).reshape(batch, channels, height, width)


@cache
def dct_basis() -> Tensor:
    """The orthonormal DCT-II matrix of 8 points, float64."""
    n = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(math.pi / 8 * (n[None, :] + 0.5) * n[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis
