"""The severity encoder's network: residual blocks at 1, 1/2 and 1/4 of the latent grid, each position normalised alone.
The residual in pixels has blocks of its own, at half of the pixels' resolution.

No layer looks at the whole image, so that photos of any size pass, whole or in strips.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashray.strips import Strips, strips_of

DETAIL_ROWS = 64  # latent positions; part of what bytes depend on


class ChannelNorm(nn.Module):
    """x / √(mean of x² over channels) at each position, times a weight a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        exact = x_BCHW if x_BCHW.dtype == torch.float64 else x_BCHW.float()  # bfloat16 would round the mean
        scale = torch.rsqrt(exact.square().mean(dim=1, keepdim=True) + 1e-6)
        return x_BCHW * scale.to(x_BCHW.dtype) * self.weight[:, None, None].to(x_BCHW.dtype)


class Block(nn.Module):
    """x + conv(silu(conv(norm(x)))); it begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = nn.SiLU()
        self.last = _zero(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.last(self.act(self.first(self.norm(x_BCHW))))


class Trunk(nn.Module):
    """[B, taken, h, w] to features [B, widths[0], h, w]; h and w are multiples of 2^(levels - 1).

    `widths` are the channels at each level, from the latent grid down; `blocks` are the residual blocks at each level,
    on the way down and again on the way up; once at the last one.
    """

    def __init__(self, taken: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.take = nn.Conv2d(taken, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.halving, self.doubling = nn.ModuleList(), nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.down.append(nn.Sequential(*(Block(width) for _ in range(count))))
            if level + 1 < len(widths):
                self.halving.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                widen = nn.Conv2d(widths[level + 1], 4 * width, 1)
                self.doubling.append(nn.Sequential(widen, nn.PixelShuffle(2)))
                self.up.append(nn.Sequential(*(Block(width) for _ in range(count))))
        self.norm = ChannelNorm(widths[0])
        self.cut = 2 ** (len(widths) - 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.take(x_BCHW)
        skipped: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            x = blocks(x)
            if level < len(self.halving):
                skipped.append(x)
                x = self.halving[level](x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](skipped[level] + self.doubling[level](x))
        return self.norm(x)


class Heads(nn.Module):
    """A trunk and what is read off its features: [B, taken, h, w] to [B, Σ given, h, w], one head after the other.

    The first of the heads, of `given` channels each, is one convolution, which begins at zero; the others are two. With
    a `factor` > 0 the first 3 · factor² channels of the input are an image's pixels, and `Detail` gives as many more.
    """

    def __init__(
        self, taken: int, widths: Sequence[int], blocks: Sequence[int], given: Sequence[int], factor: int = 0
    ) -> None:
        super().__init__()
        self.trunk = Trunk(taken, widths, blocks)
        self.heads = nn.ModuleList([_zero(widths[0], given[0]), *(_head(widths[0], count) for count in given[1:])])
        self.detail = Detail(taken + widths[0], factor) if factor else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        feature = self.trunk(x_BCHW)
        found = [head(feature) for head in self.heads]
        if self.detail is not None:
            # detached: it is trained alone, after the trunk
            found.append(self.detail(torch.cat([x_BCHW.to(feature), feature], dim=1).detach()))
        return torch.cat(found, dim=1)


class Detail(nn.Module):
    """A residual in pixels: [B, taken, h, w], of which the first 3 · factor² are pixels, to [B, 3 · factor², h, w].

    Pixels and residual are gathered at the features' positions, `factor` to a side. Its blocks work at half of the
    pixels' resolution, where noise and edges are, and see `DETAIL_ROWS` of a tall image at a time. It begins at zero.
    """

    def __init__(self, taken: int, factor: int, width: int = 64, blocks: int = 4, kept: int = 32) -> None:
        super().__init__()
        self.taken, self.factor, half = taken, factor, factor // 2
        self.spread = nn.Sequential(nn.Conv2d(taken - 3 * factor**2, kept * half**2, 1), nn.PixelShuffle(half))
        self.take = nn.Conv2d(12 + kept, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.give = _zero(width, 12)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self._part(x_BCHW) if x_BCHW.shape[2] <= DETAIL_ROWS else self._strips(self._part, x_BCHW)

    def _part(self, x_BCHW: Tensor) -> Tensor:
        pixels, feature = x_BCHW.tensor_split([3 * self.factor**2], dim=1)
        half = F.pixel_unshuffle(F.pixel_shuffle(pixels, self.factor), 2)
        residual = self.give(self.blocks(self.take(torch.cat([half, self.spread(feature)], dim=1))))
        return F.pixel_unshuffle(F.pixel_shuffle(residual, 2), self.factor)

    @cached_property
    def _strips(self) -> Strips:
        return strips_of(self, self.taken, Fraction(1), DETAIL_ROWS)


def _zero(taken: int, given: int) -> nn.Conv2d:
    """A convolution that begins at zero."""
    convolution = nn.Conv2d(taken, given, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution


def _head(taken: int, given: int) -> nn.Module:
    hidden = min(taken, 64)
    return nn.Sequential(nn.Conv2d(taken, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, given, 1))
