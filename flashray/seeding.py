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

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85


def image_seed(run_seed: int, key: str, purpose: str = "") -> int:
    """The 63-bit seed of one image of a run: a hash of (run seed, key, purpose)."""
    text = f"{run_seed}\x00{key}\x00{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


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


def normal(seed_B: Tensor, step_B: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """Standard normal noise of (seed, step, stream), the same in any batch.

    Args:
        seed_B: [B] int64 seeds of the images (`image_seed`).
        step_B: [B] int64 steps, ≥ 0.
        shape: the shape of one image's noise.
        stream: one of the STREAM_… constants.

    Returns:
        [B, *shape] float32 on the device of `seed_B`.
    """
    count = math.prod(shape)
    blocks = -(-count // 4)
    index = torch.arange(blocks, device=seed_B.device)[None, :]
    zero = torch.zeros_like(index)
    seed, step = seed_B[:, None], step_B[:, None].to(seed_B.device)
    words = philox((index, step & _MASK, zero + stream, zero), (seed & _MASK, (seed >> 32) & _MASK))
    # Box-Muller on uniforms in (0, 1): 32 random bits each, centred in their cell
    u0, u1, u2, u3 = ((word.to(torch.float64) + 0.5) * 2.0**-32 for word in words)
    radius0, radius1 = (-2 * u0.log()).sqrt(), (-2 * u2.log()).sqrt()
    angle0, angle1 = 2 * math.pi * u1, 2 * math.pi * u3
    values = torch.stack(
        [radius0 * angle0.cos(), radius0 * angle0.sin(), radius1 * angle1.cos(), radius1 * angle1.sin()], dim=2
    )
    return values.flatten(1)[:, :count].to(torch.float32).reshape(len(seed_B), *shape)


def random_words(seed_B: Tensor, count: int, stream: int) -> Tensor:
    """[B, count] int64 numbers, uniform in [0, 2³²), of (seed, stream); integers, so the same on any device."""
    index = torch.arange(count, device=seed_B.device)[None, :]
    zero = torch.zeros_like(index)
    seed = seed_B[:, None].to(torch.int64)
    return philox((index, zero, zero + stream, zero), (seed & _MASK, (seed >> 32) & _MASK))[0]


def uniform(seed_B: Tensor, count: int, stream: int) -> Tensor:
    """[B, count] float64 numbers in (0, 1) of (seed, stream)."""
    return (random_words(seed_B, count, stream).to(torch.float64) + 0.5) * 2.0**-32
