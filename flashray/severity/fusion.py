"""The last word in pixels where no operator is known: how much of D(z) replaces the measurement."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def fuse(y_BCHW: Tensor, decoded_BCHW: Tensor, weight_Bhw: Tensor) -> Tensor:
    """y + w (D(z) - y), the weight interpolated between the latents' positions; w = 0 is y, 1 is D(z).

    The errors of y and of D(z) are correlated, so w is learnt and not computed from their variances.

    Args:
        weight_Bhw: 0 … 1, one a latent position; images are larger by a whole factor.
    """
    size = (y_BCHW.shape[2], y_BCHW.shape[3])
    weight = F.interpolate(weight_Bhw[:, None].to(y_BCHW), size=size, mode="bilinear", align_corners=False)
    return y_BCHW + weight * (decoded_BCHW - y_BCHW)
