"""The last word in pixels: the decoder cannot express everything, and what y knows well is kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import AffineOperator
from flashray.solvers.proximal import Proximal
from flashray.solvers.solver import Problem

GREY_LEVEL = 1 / 255  # a measurement is never trusted to more
_EXACT = Proximal()
_INEXACT = Proximal(linearisations=2, iterations=5)  # more do not change a picture (docs/log.md)


def fuse(y_BCHW: Tensor, decoded_BCHW: Tensor, weight_Bhw: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """y + w (D(z) - y), for an unknown operator; w = 0 is y, 1 is D(z).

    The errors of y and of D(z) are correlated, so w is learnt and not computed from their variances. It is 0 … 1, one a
    latent position of the padded image (`factor` pixels a side), interpolated between positions; `size` is (H, W) of
    the images without padding.
    """
    weight = F.interpolate(weight_Bhw[:, None].to(y_BCHW), scale_factor=factor, mode="bilinear", align_corners=False)
    return y_BCHW + weight[..., : size[0], : size[1]] * (decoded_BCHW - y_BCHW)


def settled_weight(weight_Bhw: Tensor, radius: int, threshold: float, valid: tuple[int, int]) -> Tensor:
    """max(w, m) · clamp((m - t) / t, 0, 1) of the encoder's weights w and their means m nearby; t is the threshold.

    Damage fills larger parts of a photo than texture that is mistaken for it, so where the mean is small nothing
    changes, and in a damaged part no position stays behind. The mean of a position is over those up to `radius` away to
    each side, within the `valid` (h, w) of the photo; the padding repeats the border.
    """
    weight = weight_Bhw[:, None, : valid[0], : valid[1]]
    mean = weight
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        mean = F.avg_pool2d(mean, kernel, stride=1, padding=padding, count_include_pad=False)
    settled = torch.maximum(weight, mean) * ((mean - threshold) / threshold).clamp(0, 1)
    below, right = (whole - length for whole, length in zip(weight_Bhw.shape[1:], valid, strict=True))
    return F.pad(settled, (0, right, 0, below), mode="replicate")[:, 0]


def agree_with_measurement(
    decoded_BCHW: Tensor, problem: Problem, sigma_hat_B: Tensor, decoder_std: float, gain: float
) -> Tensor:
    """argmin_x ‖y - A(x)‖²/σ_y² + ‖x - D(z)‖²/σ_x², for a known operator; σ_x² = σ_D² + g² σ̂², σ_y ≥ a grey level.

    `decoder_std` is σ_D, the standard deviation of x - D(E(x)) on the [0, 1] scale; `gain` is g, of D(z) on the [0, 1]
    scale for a unit of error in z.
    """
    sigma_y_B = problem.noise_std_B.clamp(min=GREY_LEVEL)
    variance_B = decoder_std**2 + (gain * sigma_hat_B).square()
    rho_B = sigma_y_B.square() / variance_B
    proximal = _EXACT if isinstance(problem.operator, AffineOperator) else _INEXACT
    agreed = proximal.agree(decoded_BCHW, problem, rho_B[:, None, None, None].to(decoded_BCHW))
    return torch.where(torch.isfinite(agreed), agreed, decoded_BCHW)
