"""Quality of images: PSNR, SSIM and LPIPS of each, distances between sets of them, and intervals for means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from flashray.metrics.bootstrap import mean_interval
from flashray.metrics.lpips import LPIPS, MetricUnavailable, load_lpips
from flashray.metrics.pixel import SSIM_SIDE, psnr, ssim

__all__ = ["LPIPS", "MetricUnavailable", "load_lpips", "mean_interval", "psnr", "score", "score_each", "ssim"]


def score(
    x_BCHW: Tensor, ref_BCHW: Tensor, lpips: LPIPS | None = None, metrics: Collection[str] | None = None
) -> dict[str, Tensor]:
    """The requested metrics (default: all) of a batch of images against their references.

    Both are [B, 3, H, W] in [-1, 1]; values outside are clamped, as writing the image would do.
    Returns `{"psnr": [B], "ssim": [B], "lpips": [B]}`; without a network there is no `lpips`, and what the images are
    too small for is left out.
    """
    return score_each({"": x_BCHW}, ref_BCHW, lpips, metrics)


def score_each(
    candidates: Mapping[str, Tensor],
    ref_BCHW: Tensor,
    lpips: LPIPS | None = None,
    metrics: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """`score` of several batches against the same references, named prefix + metric for each prefix."""
    known: dict[str, tuple[Callable[[Sequence[Tensor], Tensor], list[Tensor]], int]] = {
        "psnr": (lambda images, ref: [psnr(x, ref) for x in images], 1),
        "ssim": (lambda images, ref: [ssim(x, ref) for x in images], SSIM_SIDE),
    }
    known |= {} if lpips is None else {"lpips": (lpips.score_each, lpips.min_side)}
    side = min(ref_BCHW.shape[-2:])
    found: dict[str, Tensor] = {}
    for name, (measure, least) in known.items():
        if side >= least and (metrics is None or name in metrics):
            values = measure(list(candidates.values()), ref_BCHW)
            found |= {prefix + name: value for prefix, value in zip(candidates, values, strict=True)}
    return found
