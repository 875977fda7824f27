"""The measurement's noise."""

from __future__ import annotations

from torch import Tensor

from flashray.seeding import STREAM_MEASUREMENT, normal


def add_noise(y_BCHW: Tensor, noise_std_B: Tensor, seed_B: Tensor) -> Tensor:
    """y + n with Gaussian n of each image's own seed.

    Args:
        y_BCHW: measurements in [-1, 1].
        noise_std_B: standard deviations on the [0, 1] scale (doubled here to act on [-1, 1]).
        seed_B: the images' seeds; the same seed draws the same noise in any batch.
    """
    noise = normal(seed_B, seed_B.new_zeros(len(seed_B)), tuple(y_BCHW.shape[1:]), STREAM_MEASUREMENT)
    return y_BCHW + 2 * noise_std_B[:, None, None, None] * noise.to(y_BCHW)
