"""The region-adaptive start: each window of a photo begins at the step that its own σ̂ asks for (docs/architecture.md).

Window k starts at s_k and is active at update i where s_k > i: it costs s_k evaluations, and the photo's
NFE is Σ_k s_k / K. A photo of one window is the method of Flash-Diffusion as it stands. Where fusion is learned, a
window that the restored image takes nothing from is spared: it starts at 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.windows import Windows


def window_sigma(sigma_hw: Tensor, windows: Windows, valid: tuple[int, int] | None = None) -> Tensor:
    """[K] float64: the root mean square of σ̂ over each window, padding left out."""
    height, width = valid or sigma_hw.shape
    there_hw = torch.zeros_like(sigma_hw, dtype=torch.float64)
    there_hw[:height, :width] = 1
    square_hw = torch.where(there_hw > 0, sigma_hw.double().square(), 0.0)
    total_K, count_K = (windows.cut(map_hw[None]).flatten(1).sum(dim=1) for map_hw in (square_hw, there_hw))
    return (total_K / count_K).sqrt()


def spared_windows(weight_hw: Tensor, windows: Windows) -> Tensor:
    """[K] bool: all fusion weights of the window and beside it are 0, so nothing in it reaches the restored image."""
    beside_1hw = F.max_pool2d(weight_hw[None], 3, stride=1, padding=1)  # weights are interpolated between positions
    return windows.cut(beside_1hw).flatten(1).amax(dim=1) == 0


def hold(z_next_CHW: Tensor, active_hw: Tensor, z_hat_CHW: Tensor, noise_CHW: Tensor, alpha_prev: Tensor) -> Tensor:
    """The latent after an update: positions that are not active get √ᾱ ẑ + √(1-ᾱ) ε at the ᾱ that the update leads to.

    ε is the position's fixed start noise, so a position that joins at the next update joins with its start latent. At
    the end, where ᾱ is 1, positions that never joined are ẑ.
    """
    return torch.where(active_hw, z_next_CHW, alpha_prev.sqrt() * z_hat_CHW + (1 - alpha_prev).sqrt() * noise_CHW)
