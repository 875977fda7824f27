"""Standard normal noise as a function of the absolute latent position (docs/architecture.md, randomness)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashray.seeding import philox

STREAMS = 2**8  # a stream's number is below this
STEPS = 2**24  # and a step's below this
_MASK = 0xFFFFFFFF
_AT_ONCE = 2**16  # counters: their words stay in a processor's cache


def normal_at(
    seed_B: Tensor, step_B: Tensor, shape: tuple[int, ...], stream: int, corner: tuple[int, int] = (0, 0)
) -> Tensor:
    """Standard normal noise of (seed, step, stream) on a grid: the noise of a slice is the slice of the noise.

    Philox's counter is (row, column, channel block, step and stream); its four words give four channels. So a
    position's noise is the same whatever the width of its photo, the batch, or the window or strip that asks.

    Args:
        seed_B: [B] int64 seeds of the images (`image_seed`).
        step_B: [B] int64 steps, 0 … 2²⁴ - 1.
        shape: (C, h, w) of one image's noise.
        stream: one of the STREAM_… constants, 0 … 255.
        corner: (row, column) of the first position, ≥ 0.

    Returns:
        [B, C, h, w] float32 on the device of `seed_B`.
    """
    channels, height, width = shape
    device = seed_B.device
    seed_B111 = seed_B[:, None, None, None]
    last_B111 = (step_B.to(device)[:, None, None, None] * STREAMS + stream) & _MASK
    block_G11 = torch.arange(-(-channels // 4), device=device)[:, None, None]
    row_h1 = corner[0] + torch.arange(height, device=device)[:, None]
    column_w = corner[1] + torch.arange(width, device=device)
    values_BGjhw = torch.empty(len(seed_B), len(block_G11), 4, height, width, device=device)
    images, rows = _chunk(len(block_G11) * width, height)
    for one in range(0, len(seed_B), images):
        some = slice(one, one + images)
        key = (seed_B111[some] & _MASK, (seed_B111[some] >> 32) & _MASK)
        for first in range(0, height, rows):
            strip = slice(first, first + rows)
            words = philox((row_h1[strip], column_w, block_G11, last_B111[some]), key)
            for j, value in enumerate(box_muller(words)):
                values_BGjhw[some, :, j, strip] = value
    return values_BGjhw.flatten(1, 2)[:, :channels]


def _chunk(row: int, height: int) -> tuple[int, int]:
    """(images, rows) to draw at once, for a row of so many counters: whole images, or some rows of one."""
    if row * height < _AT_ONCE:
        return _AT_ONCE // max(1, row * height), max(1, height)
    return 1, max(1, _AT_ONCE // row)


def box_muller(words: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four float64 normal numbers from four words: uniforms in (0, 1) of 32 bits each, centred in their cell."""
    u0, u1, u2, u3 = ((word.to(torch.float64) + 0.5) * 2.0**-32 for word in words)
    radius0, radius1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    angle0, angle1 = 2 * math.pi * u1, 2 * math.pi * u3
    return radius0 * angle0.cos(), radius0 * angle0.sin(), radius1 * angle1.cos(), radius1 * angle1.sin()
