"""A convolutional network on a tall image in strips, with the memory of one strip and the result of the whole.

A strip is cut with a halo of at least the network's receptive field on either side, and what the halo gives is thrown
away: equal to the whole image up to rounding (docs/architecture.md). The strips' height belongs to the recipe and never
to free memory, because bytes depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashray.errors import ConfigError

# Layers whose result at a position depends on that position alone; what else a network may contain is a convolution,
# or has such layers inside
_POSITIONWISE = (
    "Identity", "Dropout", "SiLU", "ReLU", "ReLU6", "GELU", "Mish", "Tanh", "Sigmoid", "LeakyReLU", "PReLU", "ELU",
    "PixelShuffle", "PixelUnshuffle", "RMSNorm", "ChannelNorm",
)  # fmt: skip
_GLOBAL = ("attention", "attn", "transformer", "groupnorm", "instancenorm")  # parts of names


@dataclass(frozen=True)
class Strips:
    """How a network runs over an image in strips."""

    rows: int  # of the input, in one strip without its halo; a multiple of `cut`
    halo: int  # rows of the input on either side of a strip, at least the receptive field and a multiple of `cut`
    cut: int  # strips begin at multiples of so many rows
    zoom: Fraction  # rows of the output for each row of the input

    def __call__(self, network: Callable[[Tensor], Tensor], x_BCHW: Tensor) -> Tensor:
        """network(x) for a network from [B, C, H, W] to [B, C', zoom · H, zoom · W].

        Where a gradient is wanted each strip is computed again on the way back: there too memory is that of one strip.
        """
        height = x_BCHW.shape[2]
        if height <= self.rows:
            return network(x_BCHW)
        again = torch.is_grad_enabled() and x_BCHW.requires_grad
        results = []
        for rows, own in self.cut_up(height):
            seen = x_BCHW[:, :, rows]
            result = (
                checkpoint(network, seen, use_reentrant=False, preserve_rng_state=False) if again else network(seen)
            )
            results.append(result[:, :, scaled(own, self.zoom)])
        return torch.cat(results, dim=2)

    def cut_up(self, height: int) -> Iterator[tuple[slice, slice]]:
        """Of each strip of an image: its rows with the halo, and its own rows among these."""
        for first in range(0, height, self.rows):
            last = min(first + self.rows, height)
            above, below = max(0, first - self.halo), min(height, last + self.halo)
            yield slice(above, below), slice(first - above, last - above)


def scaled(rows: slice, zoom: Fraction) -> slice:
    """Rows of an image at another resolution."""
    return slice(int(rows.start * zoom), int(rows.stop * zoom))


def strips_of(network: nn.Module, channels: int, zoom: Fraction, rows: int, cut: int = 1) -> Strips:
    """Strips of about `rows` ≥ 1 input rows for a network, with the halo that its layers ask for.

    `network` maps [B, channels, H, W] to [B, C', zoom · H, zoom · W], zoom being such as 1/8 for an encoder and 8 for
    its decoder; it is run once on a small blank image. Strips begin at multiples of `cut`, for networks that work at
    lower resolutions inside. ConfigError if a layer looks at the whole image, or is not known to be local.
    """
    check_local(network)
    cut = math.lcm(cut, zoom.denominator)
    halo = receptive_field(network, channels, cut)
    return Strips(rows=cut * math.ceil(rows / cut), halo=cut * math.ceil(halo / cut), cut=cut, zoom=zoom)


@torch.no_grad()
def receptive_field(network: nn.Module, channels: int, multiple: int = 1) -> int:
    """How many rows of its input a network looks up and down from a position, at most; its padding left out.

    Every convolution adds (kernel - 1)/2 · dilation positions of its own resolution, which is read off a run on a blank
    image of 8 · `multiple` rows. Convolutions of parallel branches are added up too, so that the answer is a bound. It
    knows convolutions only: whether there is anything else, `check_local` says.
    """
    size, reach = 8 * multiple, Fraction(0)

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal reach
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        rows = inputs[0].shape[2] if isinstance(module, nn.Conv2d) else output.shape[2]
        reach += Fraction(size, rows) * _half(module)

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    handles = [module.register_forward_hook(see) for module in convolutions]
    weight = next(network.parameters(), torch.zeros(()))
    try:
        network(torch.zeros(1, channels, size, size, device=weight.device, dtype=weight.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return math.ceil(reach)


def _half(convolution: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """Rows that a kernel reaches to the farther side, with its padding taken for the middle."""
    kernel, dilation, padding = convolution.kernel_size[0], convolution.dilation[0], convolution.padding
    reach = dilation * (kernel - 1)
    before = padding[0] if isinstance(padding, tuple) else (reach // 2 if padding == "same" else 0)
    return max(before, reach - before)


def check_local(network: nn.Module) -> None:
    """Raise ConfigError unless each layer is a convolution or works at every position alone."""
    for name, module in network.named_modules():
        kind = type(module).__name__
        where = f"{type(network).__name__}: {name or 'the network'} ({kind})"
        if any(word in kind.lower() for word in _GLOBAL):
            raise ConfigError(f"{where} looks at the whole image, so it cannot run in strips; run the network whole")
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            raise ConfigError(f"{where} pads by {module.padding_mode}; strips know padding by zeros only")
        known = isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Sequential) or kind in _POSITIONWISE
        if not known and next(module.children(), None) is None:
            raise ConfigError(f"{where} is not known to be local, so the network cannot run in strips; run it whole")
