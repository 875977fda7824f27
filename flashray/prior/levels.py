"""Autoencoders with GroupNorm on large images: level by level, in strips, with the statistics of the whole.

A level is what a network does at one resolution, with the step to it from the next lower one, or from it to that one.
Between levels the feature map is kept whole, at the lower of their resolutions. Within a level the image is cut into
strips (`strips.py`), and each GroupNorm gets its mean and variance over the whole image from a pass over all strips of
its own, which ends at this norm. So the result is that of the whole up to rounding, in the memory of a strip and of two
small maps, and a level with K norms takes K passes of growing length and a last one. The level at the latents'
resolution, where the attention is, runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from flashray.strips import Strips, receptive_field, scaled

# Bytes depend on these, so they never follow the free memory
WHOLE_PIXELS = 2**22  # an image of at most so many runs whole
LEVEL_ROWS = 128  # of a strip, at the higher of the level's resolutions
QUANTISED = 2**16  # positions that are compared with a codebook at once

Moments = tuple[int, Tensor, Tensor]  # (count, [B, G] mean, [B, G] sum of squared differences from it)


def in_levels(autoencoder: Any) -> Any:
    """The autoencoder, which from now on runs images above WHOLE_PIXELS level by level if it is diffusers' KL or VQ.

    Where a gradient is wanted it runs whole.
    """
    for name in ("encoder", "decoder"):
        network = getattr(autoencoder, name, None)
        if isinstance(network, Encoder | Decoder) and _is_plain(network):
            network.forward = partial(_run, network, network.forward)
    if hasattr(autoencoder, "quantize"):
        autoencoder.quantize.forward = partial(_quantised, autoencoder.quantize.forward)
    return autoencoder


def _is_plain(network: Any) -> bool:
    """Whether nothing attends but the middle, and no norm depends on anything but its input."""
    blocks = [*getattr(network, "down_blocks", ()), *getattr(network, "up_blocks", ())]
    plain = all(type(block).__name__ in ("DownEncoderBlock2D", "UpDecoderBlock2D") for block in blocks)
    return plain and isinstance(network.conv_norm_out, nn.GroupNorm)


def _quantised(quantiser: Callable[[Tensor], Any], z_BCHW: Tensor) -> Any:
    """What a quantiser of diffusers says, from some rows at a time: it compares each position with each code."""
    parts = z_BCHW.split(max(1, QUANTISED // z_BCHW.shape[3]), dim=2)
    return torch.cat([quantiser(rows)[0] for rows in parts], dim=2), None, (None, None, None)


def _run(network: Any, whole: Callable[..., Tensor], x_BCHW: Tensor, *others: None) -> Tensor:
    decodes = isinstance(network, Decoder)
    factor = 2 ** (len(network.up_blocks) - 1) if decodes else 1
    pixels = x_BCHW.shape[2] * x_BCHW.shape[3] * factor**2
    if pixels <= WHOLE_PIXELS or (torch.is_grad_enabled() and x_BCHW.requires_grad):
        return whole(x_BCHW, *others)
    for parts, zoom in _decoder_levels(network) if decodes else _encoder_levels(network):
        level = _Level(parts)
        x_BCHW = level(x_BCHW) if zoom is None else _in_strips(level, zoom, x_BCHW)
    return x_BCHW


# A level's modules, and rows of its output for each row of its input; None where it runs whole
_Levels = list[tuple[list[nn.Module], Fraction | None]]


def _encoder_levels(network: Any) -> _Levels:
    *upper, lowest = network.down_blocks
    parts = [[*block.resnets, *block.downsamplers] for block in upper]
    last = [*lowest.resnets, network.mid_block, network.conv_norm_out, network.conv_act, network.conv_out]
    levels: _Levels = [*((one, Fraction(1, 2)) for one in parts), (last, None)]
    levels[0][0].insert(0, network.conv_in)
    return levels


def _decoder_levels(network: Any) -> _Levels:
    lowest, *upper = network.up_blocks
    first = [network.conv_in, network.mid_block, *lowest.resnets]
    parts = [[*below.upsamplers, *block.resnets] for below, block in zip(network.up_blocks, upper, strict=False)]
    levels: _Levels = [(first, None), *((one, Fraction(2)) for one in parts)]
    levels[-1][0].extend([network.conv_norm_out, network.conv_act, network.conv_out])
    return levels


class _Level(nn.Module):
    """Modules one after the other."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for part in self.parts:
            x_BCHW = part(x_BCHW, None) if isinstance(part, ResnetBlock2D) else part(x_BCHW)
        return x_BCHW


@torch.no_grad()
def _in_strips(level: _Level, zoom: Fraction, x_BCHW: Tensor) -> Tensor:
    """level(x), a strip at a time."""
    cut = zoom.denominator
    halo = cut * -(-receptive_field(level, x_BCHW.shape[1], cut) // cut)
    strips = Strips(rows=int(LEVEL_ROWS / max(zoom, Fraction(1))), halo=halo, cut=cut, zoom=zoom)
    known: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}
    with _pooled(level, known) as own_rows:
        while True:
            result, found = None, []
            for rows, own in strips.cut_up(x_BCHW.shape[2]):
                seen = x_BCHW[:, :, rows]
                own_rows[:] = [own.start, own.stop, seen.shape[2]]
                try:
                    strip = level(seen)[:, :, scaled(own, zoom)]
                except _Met as met:
                    found.append(met)
                    continue
                if result is None:
                    height, width = (int(side * zoom) for side in x_BCHW.shape[2:])
                    result = strip.new_empty(*strip.shape[:2], height, width)
                first = int((rows.start + own.start) * zoom)
                result[:, :, first : first + strip.shape[2]] = strip
            if result is not None:
                return result
            norm = found[0].norm
            known[norm] = _affine(norm, [met.moments for met in found])


class _Met(Exception):
    """A strip has come to a norm whose statistics are not known yet, and says its own rows' part of them."""

    def __init__(self, norm: nn.GroupNorm, moments: Moments) -> None:
        super().__init__()
        self.norm, self.moments = norm, moments


@contextmanager
def _pooled(level: nn.Module, known: dict[nn.GroupNorm, tuple[Tensor, Tensor]]) -> Iterator[list[int]]:
    """Within the block the level's GroupNorms are x · a + b with what is known of them, or raise `_Met`.

    Yields a list for the strip's own rows (first, last + 1) and the number of rows that it sees, of the level's input.
    """
    own_rows: list[int] = []

    def forward(norm: nn.GroupNorm, x_BCHW: Tensor) -> Tensor:
        if norm in known:
            a_BC11, b_BC11 = known[norm]
            return torch.addcmul(b_BC11, x_BCHW, a_BC11).to(x_BCHW.dtype)
        first, last, seen = own_rows
        own = x_BCHW[:, :, scaled(slice(first, last), Fraction(x_BCHW.shape[2], seen))]
        raise _Met(norm, _moments(own.unflatten(1, (norm.num_groups, -1)).flatten(2)))

    norms = [module for module in level.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms:
        norm.forward = partial(forward, norm)  # type: ignore[method-assign]
    try:
        yield own_rows
    finally:
        for norm in norms:
            del norm.forward


def _moments(x_BGN: Tensor) -> Moments:
    exact = x_BGN if x_BGN.dtype == torch.float64 else x_BGN.float()
    variance, mean = torch.var_mean(exact, dim=2, correction=0)
    return x_BGN.shape[2], mean.double(), variance.double() * x_BGN.shape[2]


def _affine(norm: nn.GroupNorm, parts: list[Moments]) -> tuple[Tensor, Tensor]:
    """[B, C, 1, 1] a and b of a norm x · a + b with the pooled statistics of parts of an image (Chan et al. 1979)."""
    counts = torch.tensor([count for count, _, _ in parts], device=parts[0][1].device)[:, None, None]
    mean_PBG, squares_PBG = torch.stack([mean for _, mean, _ in parts]), torch.stack([part for _, _, part in parts])
    mean_BG = (counts * mean_PBG).sum(dim=0) / counts.sum()
    variance_BG = (squares_PBG + counts * (mean_PBG - mean_BG).square()).sum(dim=0) / counts.sum()
    each = norm.num_channels // norm.num_groups
    scale_BG = (variance_BG + norm.eps).rsqrt()
    a_BC = norm.weight.double() * scale_BG.repeat_interleave(each, dim=1)
    b_BC = norm.bias.double() - a_BC * mean_BG.repeat_interleave(each, dim=1)
    dtype = torch.float64 if norm.weight.dtype == torch.float64 else torch.float32
    return a_BC[..., None, None].to(dtype), b_BC[..., None, None].to(dtype)
