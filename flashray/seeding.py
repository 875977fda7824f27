"""Randomness that depends on (run seed, key, step) and on nothing else.

Noise comes from a counter-based generator (Philox-4x32-10; Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), written in tensor operations: each image's noise is a pure function of its seed and step. It does
not depend on the other images of the batch or on restarts, and it costs one batched call on any device.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

STREAM_START = 1  # the start latent's ε
STREAM_SOLVER = 2  # the ancestral noise of a step
STREAM_RESAMPLE = 4  # a solver's second draw of a step
STREAM_MEASUREMENT = 3  # the noise of a simulated measurement
STREAM_OPERATOR = 5  # what is random in an operator: a mask, a camera's path

STREAMS = 2**8  # a stream's number is below this, and a step's below 2**24
_MASK = 0xFFFFFFFF
_AT_ONCE = 2**16  # counters: their words stay in a processor's cache
_AT_ONCE_ON_GPU = 2**24  # a GPU spends its time on calls and not on words
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85


def image_seed(run_seed: int, key: str, purpose: str = "") -> int:
    """The 63-bit seed of one image of a run: a hash of (run seed, key, purpose)."""
    text = f"{run_seed}\x00{key}\x00{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of several restorations of an image; number 0 has the image's own."""
    return image_seed(seed, "", f"sample {sample}") if sample else seed


def generator_of(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one image's parameters; different purposes give independent draws."""
    return torch.Generator().manual_seed(image_seed(seed, "", purpose))


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a·b for 32-bit a and b, in int64 arithmetic; overflow does not reach these bits."""
    high = (a * (b >> 16) + ((a * (b & 0xFFFF)) >> 16)) >> 16
    return high, (a * b) & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10. Counter and key words are broadcastable int64 tensors in [0, 2³²); so are the four results."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIER_0, c0)
        high1, low1 = _multiply(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def normal(
    seed_B: Tensor, step_B: Tensor, shape: tuple[int, ...], stream: int, corner: tuple[int, int] = (0, 0)
) -> Tensor:
    """Standard normal noise of (seed, step, stream) on a grid: the noise of a slice is the slice of the noise.

    Philox's counter is (row, column, channel block, step and stream); its four words give four channels. So a
    position's noise is the same whatever the width of its photo, the batch, or the window or strip that asks.

    Args:
        seed_B: [B] int64 seeds of the images (`image_seed`); the result is [B, C, h, w] float32 on their device.
        step_B: [B] int64 steps, 0 … 2²⁴ - 1.
        shape: (C, h, w) of one image's noise.
        stream: one of the STREAM_… constants, 0 … 255.
        corner: (row, column) of the first position, ≥ 0.
    """
    channels, height, width = shape
    device = seed_B.device
    seed_B111 = seed_B[:, None, None, None]
    last_B111 = (step_B.to(device)[:, None, None, None] * STREAMS + stream) & _MASK
    block_G11 = torch.arange(-(-channels // 4), device=device)[:, None, None]
    row_h1 = corner[0] + torch.arange(height, device=device)[:, None]
    column_w = corner[1] + torch.arange(width, device=device)
    values_BGjhw = torch.empty(len(seed_B), len(block_G11), 4, height, width, device=device)
    images, rows = _chunk(len(block_G11) * width, height, _AT_ONCE if device.type == "cpu" else _AT_ONCE_ON_GPU)
    for one in range(0, len(seed_B), images):
        some = slice(one, one + images)
        key = (seed_B111[some] & _MASK, (seed_B111[some] >> 32) & _MASK)
        for first in range(0, height, rows):
            strip = slice(first, first + rows)
            words = philox((row_h1[strip], column_w, block_G11, last_B111[some]), key)
            for j, value in enumerate(box_muller(words)):
                values_BGjhw[some, :, j, strip] = value
    return values_BGjhw.flatten(1, 2)[:, :channels]


def _chunk(row: int, height: int, most: int) -> tuple[int, int]:
    """(images, rows) to draw at once, for a row of so many counters: whole images, or some rows of one."""
    if row * height < most:
        return most // max(1, row * height), max(1, height)
    return 1, max(1, most // row)


def box_muller(words: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four float64 normal numbers from four words: uniforms in (0, 1) of 32 bits each, centred in their cell."""
    u0, u1, u2, u3 = ((word.to(torch.float64) + 0.5) * 2.0**-32 for word in words)
    radius0, radius1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    angle0, angle1 = 2 * math.pi * u1, 2 * math.pi * u3
    return radius0 * angle0.cos(), radius0 * angle0.sin(), radius1 * angle1.cos(), radius1 * angle1.sin()


def random_words(seed_B: Tensor, count: int, stream: int) -> Tensor:
    """[B, count] int64 numbers, uniform in [0, 2³²), of (seed, stream); integers, so the same on any device."""
    index = torch.arange(count, device=seed_B.device)[None, :]
    zero = torch.zeros_like(index)
    seed = seed_B[:, None].to(torch.int64)
    return philox((index, zero, zero + stream, zero), (seed & _MASK, (seed >> 32) & _MASK))[0]


def uniform(seed_B: Tensor, count: int, stream: int) -> Tensor:
    """[B, count] float64 numbers in (0, 1) of (seed, stream)."""
    return (random_words(seed_B, count, stream).to(torch.float64) + 0.5) * 2.0**-32
