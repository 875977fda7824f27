"""A photo alone against the same photo as a part of a larger one: 128 pixels, and the corner of 192.

    python -m benchmarks.in_a_larger_photo FOLDER [--count 64]

Both are damaged alike and are scored on the same 128 × 128 pixels, for recipe `photo` (the damage of the larger one is
cut) and for a known Gaussian blur (each is blurred by itself, with the same noise). Prints PSNR, and the mean
difference with its interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import flashray
from benchmarks.pages.tables import paired_interval
from benchmarks.photo_levels import CAP
from flashray.metrics import psnr
from flashray.training.photo_windows import list_photos, load_fitted

SMALL, LARGE = 128, 192


def corner(x_CHW: Tensor) -> Tensor:
    return x_CHW[:, :SMALL, :SMALL]


@torch.no_grad()
def pairs_of(recipe: str, x_NCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(restored alone, restored as the larger one's corner) of each photo."""
    simulate = flashray.load(recipe, device="cpu", precision="float32", measurement="simulated")
    level_of = [n / max(1, len(x_NCHW) - 1) for n in range(len(x_NCHW))]
    large = [simulate.measurer.photo(f"{n}", x, severity=level_of[n]) for n, x in enumerate(x_NCHW)]
    if recipe == "photo":
        restorer = flashray.load(recipe, device="cpu", precision="float32")
        damaged = [simulate.measure([one]).y_BCHW[0] for one in large]
        keys = [one.key for one in large]
        whole, alone = (restorer(some, keys=keys) for some in (damaged, [corner(y) for y in damaged]))
    else:
        small = [simulate.measurer.photo(f"{n}", corner(x), severity=level_of[n]) for n, x in enumerate(x_NCHW)]
        whole, alone = (simulate.restore_photos(some) for some in (large, small))
    found = zip(alone.images, whole.images, strict=True)
    return [(one, corner(other)) for one, other in found if one is not None and other is not None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64)
    given = parser.parse_args()
    paths = list_photos(given.folder)
    x = load_fitted(paths[:: max(1, len(paths) // given.count)][: given.count], 256)[:, :, :LARGE, :LARGE]
    print("| recipe | photos | alone, dB | in the larger one, dB | difference |\n|---|---:|---:|---:|---|", flush=True)
    for recipe in ("photo", "gaussian_blur_flash_proximal"):
        pairs = pairs_of(recipe, x)
        reference = torch.stack([corner(one) for one in x])
        alone, inside = (
            psnr(torch.stack(list(images)), reference).clamp(max=CAP).tolist() for images in zip(*pairs, strict=True)
        )
        mean, low, high = paired_interval(inside, alone)
        print(
            f"| {recipe} | {len(alone)} | {sum(alone) / len(alone):.3f} | {sum(inside) / len(inside):.3f} | "
            f"{mean:+.3f} ({low:+.3f} … {high:+.3f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
