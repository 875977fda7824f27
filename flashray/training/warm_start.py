"""Start an autoencoder from another of different depth or with other latents."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def copy_trunk(model: Any, source: Any) -> int:
    """Copy what two AutoencoderDC have in common; returns how many tensors that was.

    At each resolution the n-th residual block, down- or upsampling of `model` takes the weights of the n-th of `source`
    where the shapes agree. A residual block that takes none starts as the identity. The convolutions beside the latents
    are copied only between equal numbers of latent channels and equal features.
    """
    pairs: list[tuple[nn.Module | None, nn.Module | None]] = []
    for ours, theirs in (
        (model.encoder.down_blocks, source.encoder.down_blocks),
        (model.decoder.up_blocks, source.decoder.up_blocks),
    ):
        for level, block in enumerate(ours):
            other = theirs[level] if level < len(theirs) else nn.Sequential()
            for kind in dict.fromkeys(type(layer) for layer in block):
                pairs += zip_longest(_of_kind(block, kind), _of_kind(other, kind))
    pairs += [(model.encoder.conv_in, source.encoder.conv_in), (model.encoder.conv_out, source.encoder.conv_out)]
    pairs += [(model.decoder.conv_in, source.decoder.conv_in), (model.decoder.conv_out, source.decoder.conv_out)]
    pairs += [(model.decoder.norm_out, source.decoder.norm_out)]
    return sum(_copy(ours, theirs) for ours, theirs in pairs if ours is not None)


def _of_kind(block: nn.Module, kind: type) -> list[nn.Module]:
    return [layer for layer in block.children() if type(layer) is kind]


def _copy(ours: nn.Module, theirs: nn.Module | None) -> int:
    mine = ours.state_dict()
    given = theirs.state_dict() if theirs is not None else {}
    if {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in given.items()}:
        ours.load_state_dict(given)
        return len(given)
    norm = getattr(ours, "norm", None)
    if norm is not None:  # a residual branch ends with its norm
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
    return 0
