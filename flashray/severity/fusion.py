"""The last word in pixels: the decoder cannot express everything, and what y knows well is kept."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import AffineOperator
from flashray.solvers.proximal import Proximal
from flashray.solvers.solver import Problem
from flashray.windows import crop, pad_to

GREY_LEVEL = 1 / 255  # a measurement is never trusted to more
BLOCK = 8  # pixels to a side of JPEG's blocks
COMPRESSED = (1.2, 1.4)  # blockiness of photos that are taken for compressed: hardly, and wholly
# correlation of a residual's neighbouring pixels: up to the first it takes noise away, from the second on it sharpens
ALIKE = (0.3, 0.5)
FAINT = 0.1  # share of the grain; a position that changes by more counts as noisy
EVERYWHERE = (0.6, 0.9)  # noisy share of a photo: up to the first noise is taken for texture, from the second on not
MOST_STEP = 16  # grey levels, so that blockiness is not that of a few edges
_EXACT = Proximal()
_INEXACT = Proximal(linearisations=2, iterations=5)  # more do not change a picture (docs/log.md)


def fuse(given_BCHW: Tensor, decoded_BCHW: Tensor, weight_Bhw: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """p + w (D(z) - p), for an unknown operator; w = 0 is p, 1 is D(z). `given` is p: y, or y + R.

    The errors of y and of D(z) are correlated, so w is learnt and not computed from their variances. It is 0 … 1, one a
    latent position of the padded image (`factor` pixels a side), interpolated between positions; `size` is (H, W) of
    the images without padding.
    """
    return given_BCHW + _of_pixels(weight_Bhw.to(given_BCHW), factor, size) * (decoded_BCHW - given_BCHW)


def settled_weight(weight_Bhw: Tensor, radius: int, threshold: float, valid: tuple[int, int]) -> Tensor:
    """max(w, m) · clamp((m - t) / t, 0, 1) of the encoder's weights w and their means m nearby; t is the threshold.

    Damage fills larger parts of a photo than texture that is mistaken for it, so where the mean is small nothing
    changes, and in a damaged part no position stays behind. The mean of a position is over those up to `radius` away to
    each side, within the `valid` (h, w) of the photo; the padding repeats the border.
    """
    weight = weight_Bhw[:, : valid[0], : valid[1]]
    mean = _mean_nearby(weight, radius)
    return pad_to(torch.maximum(weight, mean) * _ramp(mean, threshold), (weight_Bhw.shape[1], weight_Bhw.shape[2]))


def settled_residual(
    residual_BCHW: Tensor, radius: int, grain_B: Tensor, factor: int, valid: tuple[int, int]
) -> Tensor:
    """R · (a · clamp((s - t) / t, 0, 1) + (1 - a) · n), t being `grain_B` in grey levels.

    a rises over `ALIKE` with the correlation of R's neighbouring pixels nearby: it is 0 where R takes noise away and 1
    where R sharpens. What sharpens counts where it is strong: s is the root mean square of R nearby. Noise counts where
    it is in most of the photo, because texture that is mistaken for it is in parts: n rises over `EVERYWHERE` with the
    share of positions that R changes by more than `FAINT` · t. "Nearby" and the padding are as in `settled_weight`.
    """
    if not residual_BCHW.shape[1]:
        return residual_BCHW
    r = residual_BCHW[..., : valid[0] * factor, : valid[1] * factor]
    neighbour = F.pad((r[..., 1:] * r[..., :-1]).mean(dim=1), (0, 1))
    neighbour += F.pad((r[..., 1:, :] * r[..., :-1, :]).mean(dim=1), (0, 0, 0, 1))
    square, product = (F.avg_pool2d(one, factor) for one in (r.square().mean(dim=1), neighbour / 2))
    near = _mean_nearby(square, radius)
    alike = _between(_mean_nearby(product, radius) / near.clamp(min=1e-12), *ALIKE)
    grain = 2 * GREY_LEVEL * grain_B.to(square)[:, None, None]  # images are on [-1, 1]
    noise = _between(_ramp(square.sqrt(), FAINT * grain).mean(dim=(1, 2), keepdim=True), *EVERYWHERE)
    share = torch.lerp(noise, _ramp(near.sqrt(), grain), alike)
    size = (residual_BCHW.shape[2], residual_BCHW.shape[3])
    padded = pad_to(share, (size[0] // factor, size[1] // factor))
    return residual_BCHW * _of_pixels(padded, factor, size)


def grain_of(y_BCHW: Tensor, grain: float) -> Tensor:
    """[B] `grain`, less in compressed photos and 0 where compression is plain to see.

    The grain protects what may be a photo's own. The borders of JPEG's blocks are nobody's own.
    """
    return grain * (1 - _between(blockiness(y_BCHW), *COMPRESSED))


def blockiness(y_BCHW: Tensor) -> Tensor:
    """[B] the mean step between neighbours across the borders of JPEG's blocks, over that at other distances to them.

    About 1 in photos that were never compressed, 1.1 … 1.4 at quality 75, 1.2 … 2 at quality 20. The largest of the
    seven other means counts, because pixels that were repeated have steps at every second place or fourth. Only blocks
    that begin at the photo's corner are seen: not those of photos that were cropped, scaled or turned afterwards.
    """
    grey_BHW = y_BCHW.mean(dim=1)
    mean_B8 = grey_BHW.new_zeros(len(grey_BHW), BLOCK)
    for dim in (1, 2):
        if grey_BHW.shape[dim] > BLOCK:
            step_BHW = grey_BHW.diff(dim=dim).abs().clamp(max=2 * MOST_STEP * GREY_LEVEL)
            line_BN = step_BHW.mean(dim=3 - dim)
            mean_B8 += torch.stack([line_BN[:, first::BLOCK].mean(dim=1) for first in range(BLOCK)], dim=1)
    border_B, other_B = mean_B8[:, BLOCK - 1], mean_B8[:, : BLOCK - 1].amax(dim=1)
    return torch.where(other_B > 0, border_B / other_B, 1.0)


def _mean_nearby(value_Bhw: Tensor, radius: int) -> Tensor:
    """The mean over positions up to `radius` away to each side, within the image."""
    mean = value_Bhw[:, None]
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        mean = F.avg_pool2d(mean, kernel, stride=1, padding=padding, count_include_pad=False)
    return mean[:, 0]


def _ramp(value: Tensor, threshold: float | Tensor) -> Tensor:
    """0 up to the threshold, 1 from twice the threshold on."""
    least = torch.as_tensor(threshold, dtype=value.dtype, device=value.device).clamp(min=1e-9)
    return ((value - least) / least).clamp(0, 1)


def _between(value: Tensor, low: float, high: float) -> Tensor:
    """0 up to `low`, 1 from `high` on."""
    return ((value - low) / (high - low)).clamp(0, 1)


def _of_pixels(value_Bhw: Tensor, factor: int, size: tuple[int, int]) -> Tensor:
    """[B, 1, H, W]: values of latent positions, interpolated between them."""
    return crop(F.interpolate(value_Bhw[:, None], scale_factor=factor, mode="bilinear", align_corners=False), size)


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
