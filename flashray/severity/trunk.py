"""The severity encoder's network: residual blocks at 1, 1/2 and 1/4 of the latent grid, each position normalised alone.

No layer looks at the whole image, so that photos of any size pass, whole or in strips.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

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

    The first of the heads, of `given` channels each, is one convolution, which begins at zero; the others are two.
    """

    def __init__(self, taken: int, widths: Sequence[int], blocks: Sequence[int], given: Sequence[int]) -> None:
        super().__init__()
        self.trunk = Trunk(taken, widths, blocks)
        first = nn.Conv2d(widths[0], given[0], 3, padding=1)
        nn.init.zeros_(first.weight)
        nn.init.zeros_(first.bias)  # type: ignore[arg-type]
        self.heads = nn.ModuleList([first, *(_head(widths[0], count) for count in given[1:])])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        feature = self.trunk(x_BCHW)
        return torch.cat([head(feature) for head in self.heads], dim=1)


def _head(taken: int, given: int) -> nn.Module:
    hidden = min(taken, 64)
    return nn.Sequential(nn.Conv2d(taken, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, given, 1))
