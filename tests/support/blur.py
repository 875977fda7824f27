"""The blur as dense matrices: what the separable convolution is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


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
