"""Whether the borders of windows show in an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def seam_ratio(image_CHW: Tensor, borders: tuple[Sequence[int], Sequence[int]], shift: int, beside: int = 4) -> float:
    """(Gradient on window borders over that beside them) / (the same with the borders moved by `shift`); 1: no seam.

    The second ratio takes out what the image and the decoder's own grid do.

    Args:
        image_CHW: [C, H, W].
        borders: the rows and the columns that windows begin at, in pixels; 0 and the image's sides do not count.
        shift: half a stride in pixels, a multiple of the latent factor.
        beside: pixels to either side that gradients are compared with.
    """
    moved = tuple([border + shift for border in some] for some in borders)
    return _contrast(image_CHW, borders, beside) / _contrast(image_CHW, (moved[0], moved[1]), beside)


def _contrast(image_CHW: Tensor, borders: tuple[Sequence[int], Sequence[int]], beside: int) -> float:
    """Mean absolute gradient across the borders over that across the lines beside them."""
    on, near = [], []
    for dim, some in ((1, borders[0]), (2, borders[1])):
        gradient = image_CHW.double().diff(dim=dim).abs()  # line g is between pixels g and g + 1
        line = gradient.mean(dim=[d for d in range(3) if d != dim])
        for border in some:
            if beside < border < len(line) - beside:
                on.append(line[border - 1])
                near.append(torch.cat([line[border - 1 - beside : border - 1], line[border : border + beside]]).mean())
    return (torch.stack(on).sum() / torch.stack(near).sum()).item()


def window_borders(starts: Sequence[int], side: int, factor: int) -> list[int]:
    """The pixels at which windows begin or end along an axis, from their first latent positions."""
    return sorted({factor * edge for start in starts for edge in (start, start + side)})
