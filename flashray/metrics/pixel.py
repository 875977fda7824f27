"""PSNR and SSIM of each image, stated on the [0, 1] scale as the field does.

torchmetrics is imported on first use: a worker that scores nothing starts half a second sooner.
"""

from __future__ import annotations

import torch
from torch import Tensor

SSIM_SIDE = 6  # pixels a side at least, for the window of 11 with a reflected border
_AT_ONCE = 2**20  # pixels


def psnr(x_BCHW: Tensor, ref_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, [B]; infinite where the two images are equal.

    Both are [B, C, H, W] in [-1, 1]; values outside are clamped. ValueError when the shapes differ.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x, ref = _comparable(x_BCHW, ref_BCHW)
    return peak_signal_noise_ratio(x, ref, data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(x_BCHW: Tensor, ref_BCHW: Tensor) -> Tensor:
    """Structural similarity, [B] in [-1, 1], 1 for equal images.

    Wang et al. 2004 as torchmetrics computes it: a Gaussian window of std 1.5 and 11 pixels, K1 = 0.01, K2 = 0.03,
    averaged over channels and all pixels, the border being reflected. (scikit-image leaves 5 pixels of border out.)
    Both are [B, C, H, W] in [-1, 1], at least `SSIM_SIDE` pixels a side; values outside are clamped. Large images are
    taken in strips, for memory. ValueError when the shapes differ.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, ref = _comparable(x_BCHW, ref_BCHW)
    height, width = x.shape[2:]
    if height * width <= _AT_ONCE:
        value = structural_similarity_index_measure(x, ref, data_range=1.0, reduction="none")
        assert isinstance(value, Tensor)  # a tuple only when the full map is asked for
        return value.reshape(len(x))
    rows, halo = max(_AT_ONCE // width, 1), SSIM_SIDE - 1
    total = x.new_zeros(len(x), dtype=torch.float64)
    for top in range(0, height, rows):
        above, below = max(top - halo, 0), min(top + rows + halo, height)
        x_strip, ref_strip = x[:, :, above:below], ref[:, :, above:below]
        _, similarity = structural_similarity_index_measure(
            x_strip, ref_strip, data_range=1.0, reduction="none", return_full_image=True
        )
        total += similarity[:, :, top - above : top - above + rows].double().sum(dim=(1, 2, 3))
    return (total / x[0].numel()).to(x)


def _comparable(x: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != ref.shape or x.ndim != 4:
        raise ValueError(f"images and references differ in shape: {tuple(x.shape)} against {tuple(ref.shape)}")
    return ((x.float() + 1) / 2).clamp(0, 1), ((ref.float() + 1) / 2).clamp(0, 1)
