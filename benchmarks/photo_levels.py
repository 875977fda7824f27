"""Recipe `photo` on clean photos that were damaged on purpose: ten levels of its own family, and damage it never saw.

    python -m benchmarks.photo_levels FOLDER [--count 32] [--side 256]
    python -m benchmarks.photo_levels --whole

Prints Markdown: PSNR and LPIPS of the damaged photos, of the fused estimate (start step 0) and of the restored ones,
and the mean difference of restored and damaged photos with its 95 % bootstrap interval over the photos. With --whole:
the twelve photos from inside packages as they are, at their own size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import flashray
from benchmarks.pages.tables import paired_interval
from benchmarks.sample_photos import whole_photos
from flashray.degradations.photo import convolve
from flashray.metrics import LPIPS, load_lpips, psnr
from flashray.restorer import Restorer
from flashray.training.photo_windows import list_photos, load_fitted

LEVELS = 10
UNSEEN = 6  # levels of damage that the family does not contain
CAP = 60.0  # dB, for photos that come back as they were


def defocus(x_BCHW: Tensor, level: float, seed: int) -> Tensor:
    """A disc of radius 1 … 5 pixels, and signal-dependent noise whose neighbours correlate."""
    radius = 1 + 4 * level
    offset = torch.arange(-10, 11.0)
    distance = (offset[:, None].square() + offset[None, :].square()).sqrt()
    disc = (radius + 0.5 - distance).clamp(0, 1)
    blurred = convolve(x_BCHW, (disc / disc.sum()).expand(len(x_BCHW), -1, -1))
    generator = torch.Generator().manual_seed(seed)
    noise = F.avg_pool2d(torch.randn(x_BCHW.shape, generator=generator), 3, stride=1, padding=1) * 3
    strength = 2 * (0.005 + 0.035 * level) * (0.3 + 0.7 * (blurred + 1) / 2).sqrt()
    return (blurred + strength * noise).clamp(-1, 1)


def damaged(restorer: Restorer, x_NCHW: Tensor, level: float) -> Tensor:
    """The photos after the family's damage of this severity, in steps of 1/255 as a file holds them."""
    photos = [restorer.measurer.photo(f"{n}", x, severity=level) for n, x in enumerate(x_NCHW)]
    return torch.cat([restorer.measure(photos[n : n + 8]).y_BCHW for n in range(0, len(photos), 8)])


Figures = tuple[list[float], list[float]]  # of each photo: PSNR in dB, at most CAP; LPIPS


def figures(image: Tensor, x_NCHW: Tensor, lpips: LPIPS) -> Figures:
    pairs = zip(image.split(8), x_NCHW.split(8), strict=True)
    return psnr(image, x_NCHW).clamp(max=CAP).tolist(), torch.cat([lpips(*pair) for pair in pairs]).tolist()


def difference(restored: Figures, given: Figures) -> str:
    """Restored - given with its interval, in dB / LPIPS."""
    (gain, low, high), (change, least, most) = (paired_interval(*pair) for pair in zip(restored, given, strict=True))
    return f"{gain:+.2f} ({low:+.2f} … {high:+.2f}) / {change:+.4f} ({least:+.4f} … {most:+.4f})"


@torch.no_grad()
def row(name: str, y_NCHW: Tensor, x_NCHW: Tensor, restorers: list[Restorer], lpips: LPIPS) -> str:
    """One line of the table."""
    y = (((y_NCHW + 1) * 127.5).round() / 127.5 - 1).clamp(-1, 1)
    cells, nfe = [figures(y, x_NCHW, lpips)], 0.0
    for restorer in restorers:
        restored = restorer(list(y), keys=[f"{n}" for n in range(len(y))])
        cells.append(figures(torch.stack([one for one in restored.images if one is not None]), x_NCHW, lpips))
        nfe = sum(restored.nfe) / len(y)
    means = [f"{sum(decibels) / len(y):.2f} / {sum(distances) / len(y):.4f}" for decibels, distances in cells]
    return f"| {name} | " + " | ".join([*means, difference(cells[-1], cells[0])]) + f" | {nfe:.2f} |"


@torch.no_grad()
def undamaged(lpips: LPIPS) -> None:
    """A line for each of the whole photos, given as it is."""
    restorer = flashray.load("photo", device="cpu", precision="float32")
    print("| photo | σ̂ | NFE | PSNR | LPIPS |\n|---|---:|---:|---:|---:|", flush=True)
    for name, x in whole_photos().items():
        restored = restorer(x, keys=[name])
        (image,) = restored.images
        assert image is not None, restored.errors
        ((decibels,), (distance,)) = figures(image[None], x[None], lpips)
        cells = f"{restored.sigma_hat[0]:.3f} | {restored.nfe[0]:.2f} | {decibels:.2f} | {distance:.4f}"
        print(f"| {name} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--side", type=int, default=256)
    given = parser.parse_args()
    lpips = load_lpips("vgg")
    if given.whole:
        undamaged(lpips)
        return
    if given.folder is None:
        parser.error("give a folder of photos, or --whole")
    paths = list_photos(given.folder)
    x = load_fitted(paths[:: max(1, len(paths) // given.count)][: given.count], given.side)
    simulate = flashray.load("photo", device="cpu", precision="float32", measurement="simulated")
    restorers = [
        flashray.load("photo", device="cpu", precision="float32", start={"strength": strength})
        for strength in (0.0, 1.0)
    ]
    print(f"{len(x)} photos of {given.side} pixels; PSNR (dB, at most {CAP:g} a photo) / LPIPS (VGG)\n")
    print("| damage | given | start step 0 | restored | restored - given | NFE |")
    print("|---|---|---|---|---|---|", flush=True)
    for level in torch.linspace(0, 1, LEVELS).tolist():
        print(row(f"photo {level:.2f}", damaged(simulate, x, level), x, restorers, lpips), flush=True)
    for number, level in enumerate(torch.linspace(0, 1, UNSEEN).tolist()):
        print(row(f"unseen {level:.1f}", defocus(x, level, number), x, restorers, lpips), flush=True)


if __name__ == "__main__":
    main()
