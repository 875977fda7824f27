"""A photo in another frame: what stands beside its pixels, for a restored image of another size than the file's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashray.images.colour import colour_space
from flashray.images.levels import to_uint16
from flashray.images.metadata import sized_exif
from flashray.images.sizes import Fit, resize
from flashray.images.source import ROWS_AT_ONCE, SourceImage, scaled

ALPHA_LOST = "alpha (the restored image shows another part of the photo)"


def reframed(x_CHW: Tensor, source: SourceImage, fit: Fit) -> SourceImage:
    """The source as if its file had held the image x, which is of another size.

    `encode_like(x, reframed(x, source, fit))` writes x with the file's format, kind, depth, colour profile, EXIF (which
    says the new size) and XMP. No pixel of x is a pixel of the file, so no samples are shared. Alpha is brought to the
    frame as the image was: its largest centred part of the frame's shape is resized, or its centre is cut out. Where a
    frame that was cropped is larger than the file, alpha is dropped, and `dropped` says so.
    """
    x = x_CHW.detach().float().cpu().clamp(-1, 1)
    if source.neutral:
        x = x.mean(dim=0, keepdim=True).expand(3, -1, -1).contiguous()
    height, width = x.shape[1:]
    alpha, dropped = source.alpha, source.dropped
    if alpha is not None:
        alpha = _alpha(alpha, height, width, fit)
        dropped = dropped if alpha is not None else (*dropped, ALPHA_LOST)
    return replace(
        source,
        pixels=x,
        samples=_samples(x, source),
        alpha=alpha,
        exif=None if source.exif is None else sized_exif(source.exif, width, height),
        dropped=dropped,
    )


def _samples(x: Tensor, source: SourceImage) -> NDArray[np.generic]:
    """The image in the file's own colours and depth, [H, W, C]."""
    space, _ = colour_space(source.kind, source.depth, source.icc)
    height, width = x.shape[1:]
    out = np.empty((height, width, source.samples.shape[-1]), source.samples.dtype)
    for top in range(0, height, ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        units = space.from_srgb(((x[:, rows].permute(1, 2, 0) + 1) / 2).numpy()).clip(0, 1)
        out[rows] = units if source.depth == 32 else np.rint(units * (2**source.depth - 1))
    return out


def _alpha(alpha_HW: NDArray[np.generic], height: int, width: int, fit: Fit) -> NDArray[np.generic] | None:
    rows, columns = alpha_HW.shape
    if fit == "crop":
        if rows < height or columns < width:
            return None
        return _centre(alpha_HW, height, width)
    share = min(rows / height, columns / width)
    part = _centre(alpha_HW, max(1, round(height * share)), max(1, round(width * share)))
    units = torch.from_numpy(scaled(part))[None, None]
    units = resize(units, (height, width))[0, 0]
    if alpha_HW.dtype.kind == "f":
        return units.clamp(0, 1).numpy()
    levels = to_uint16(units * 2 - 1).numpy()
    return (levels if alpha_HW.dtype.itemsize == 2 else (levels + 128) // 257).astype(alpha_HW.dtype)


def _centre(values: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
    return np.ascontiguousarray(values[top : top + height, left : left + width])
