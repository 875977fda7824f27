"""How far several restorations of one photo lie apart, pixel by pixel: where they differ, detail was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from flashray.images.levels import saved
from flashray.images.source import ROWS_AT_ONCE, open_image

SPREAD_SCALE = 8  # values of the map to a grey level; its white, 255, is a standard deviation of 31.9 levels or more


def sample_spread(samples: Sequence[Tensor]) -> Tensor:
    """[H, W] the standard deviation at each pixel, in grey levels of 8 bits: √ of the channels' mean variance.

    `samples` are N ≥ 2 images [3, H, W] in [-1, 1]; variances are divided by N - 1.
    """
    spread_HW = torch.empty(samples[0].shape[1:])
    for top in range(0, len(spread_HW), ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        variance_CHW = torch.stack([one[:, rows] for one in samples]).var(dim=0)
        spread_HW[rows] = 127.5 * variance_CHW.mean(dim=0).sqrt()
    return spread_HW


def encode_spread(spread_HW: Tensor) -> bytes:
    """A grey PNG of 8 bits, `SPREAD_SCALE` values to a grey level; a text in it says so."""
    note = PngImagePlugin.PngInfo()
    note.add_text("Description", f"standard deviation over samples: {SPREAD_SCALE} is one grey level of 8 bits")
    values = (spread_HW * SPREAD_SCALE).round().clamp(0, 255).numpy().astype(np.uint8)
    return saved(Image.fromarray(values), "PNG", pnginfo=note)


def decode_spread(data: bytes) -> Tensor:
    """[H, W] the grey levels of a map that `encode_spread` wrote."""
    return (open_image(data).pixels[0] + 1) * 127.5 / SPREAD_SCALE
