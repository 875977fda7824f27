"""Separable convolution of images of any size with reflected borders, and its exact adjoint.

The convolution along an axis is a product of blocks of the image with one small banded matrix: as fast as a matrix
product, exact to rounding, and differentiable; a 12-megapixel photo takes a second and no matrix of its own size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 64  # results of one product along the axis
_PIECE = 2**20  # pixels that are convolved at once


def gaussian_kernel(std_B: Tensor, kernel_size: int, length: int) -> Tensor:
    """[B, 2 r + 1] Gaussian weights that sum to one, each image's cut to 6 of its own std.

    r is kernel_size // 2 and at most length - 1, which is all that reflect padding of an axis of `length` pixels can
    give. It does not depend on the batch, so that an image's result does not either, to the last bit.
    """
    reach_B = (6 * std_B + 0.5).floor()
    radius = min(kernel_size // 2, length - 1)
    offset_K = torch.arange(-radius, radius + 1, device=std_B.device)
    weight_BK = torch.exp(-0.5 * (offset_K / std_B[:, None]) ** 2) * (offset_K.abs() <= reach_B[:, None])
    return weight_BK / weight_BK.sum(dim=1, keepdim=True)


def reflection(length: int, radius: int, device: torch.device) -> Tensor:
    """[length + 2 radius] indices of the pixels that padding repeats; the border pixel itself is not."""
    source = torch.arange(-radius, length + radius, device=device).abs()
    return torch.where(source >= length, 2 * (length - 1) - source, source)


def convolve(x_BCHW: Tensor, weight_BK: Tensor, dim: int) -> Tensor:
    """y_i = Σ_k weight_k x_{i + k - r} along `dim` (2 or 3), the image reflected at its borders (border not repeated).

    ValueError if the radius r is not smaller than the axis.
    """
    radius, length = weight_BK.shape[1] // 2, x_BCHW.shape[dim]
    if radius >= length:
        raise ValueError(f"a kernel of {weight_BK.shape[1]} does not fit an axis of {length} with reflected borders")
    source = reflection(length, radius, x_BCHW.device)
    pieces = [_correlate(piece.index_select(dim, source), weight_BK, dim) for piece in _pieces(x_BCHW, dim)]
    return torch.cat(pieces, dim=5 - dim)


def convolve_adjoint(y_BCHW: Tensor, weight_BK: Tensor, dim: int) -> Tensor:
    """The transpose of `convolve`: spread every pixel over its kernel, then fold what fell beyond the borders back."""
    return torch.cat([_spread_and_fold(piece, weight_BK, dim) for piece in _pieces(y_BCHW, dim)], dim=5 - dim)


def _spread_and_fold(y_BCHW: Tensor, weight_BK: Tensor, dim: int) -> Tensor:
    radius, length = weight_BK.shape[1] // 2, y_BCHW.shape[dim]
    around = (0, 0, 2 * radius, 2 * radius) if dim == 2 else (2 * radius, 2 * radius)
    spread = _correlate(F.pad(y_BCHW, around), weight_BK.flip(1), dim)  # length + 2 r
    x = spread.narrow(dim, radius, length).clone()
    if radius:
        x.narrow(dim, 1, radius).add_(spread.narrow(dim, 0, radius).flip(dim))
        x.narrow(dim, length - 1 - radius, radius).add_(spread.narrow(dim, length + radius, radius).flip(dim))
    return x


def _pieces(x_BCHW: Tensor, dim: int) -> tuple[Tensor, ...]:
    """The images cut across the other axis, so that what a convolution along `dim` makes of one stays in the cache."""
    line = x_BCHW.shape[0] * x_BCHW.shape[1] * x_BCHW.shape[dim]
    return x_BCHW.split(max(1, _PIECE // max(1, line)), dim=5 - dim)


def _correlate(x_BCHW: Tensor, weight_BK: Tensor, dim: int) -> Tensor:
    """y_i = Σ_k weight_k x_{i+k} along `dim`, where the kernel fits: the axis loses K - 1."""
    taps, length = weight_BK.shape[1], x_BCHW.shape[dim] - weight_BK.shape[1] + 1
    block = min(_BLOCK, length)
    blocks = -(-length // block)
    missing = blocks * block - length
    x_BCHW = F.pad(x_BCHW, (0, 0, 0, missing) if dim == 2 else (0, missing))
    batch, channels, height, width = x_BCHW.shape
    band_BLW = _band(weight_BK.to(x_BCHW), block).expand(batch, -1, -1)
    seen = x_BCHW.unfold(dim, block + taps - 1, block)  # one more dimension at the end: what a block of results sees
    if dim == 3:
        y = torch.bmm(seen.reshape(batch, channels * height * blocks, block + taps - 1), band_BLW.mT)
        return y.reshape(batch, channels, height, blocks * block)[..., :length]
    columns = seen.mT.reshape(batch, channels * blocks, block + taps - 1, width)
    return (band_BLW[:, None] @ columns).reshape(batch, channels, blocks * block, width)[:, :, :length]


def _band(weight_BK: Tensor, block: int) -> Tensor:
    """[B, L, L + K - 1] matrices with the kernel along their diagonals."""
    taps = weight_BK.shape[1]
    position = torch.arange(block + taps - 1, device=weight_BK.device)
    place = position - position[:block, None]
    inside = (place >= 0) & (place < taps)
    return torch.where(inside, weight_BK[:, place.clamp(0, taps - 1)], 0.0)
