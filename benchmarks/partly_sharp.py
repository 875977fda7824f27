"""What the region-adaptive start saves on photos of which a part is sharp.

    python -m benchmarks.partly_sharp FOLDER [--count 32] [--cases photo many known] [--whole] [--share .25]

Each photo has a sharp subject, an ellipse with soft edges, and a blurred background. Every photo is restored with the
start of each window at its own σ̂, times each of --scales, and, with the same noise, with all windows at one start: that
of the image's σ̂ times each of --factors. The image's σ̂ is a root mean square, so sharp parts make it smaller than that
of the damaged windows; a factor above 1 brings these the start that the map gives them. The last two columns compare at
equal quality: what the starts of windows save of the evaluations and seconds at which one start has the same mean
LPIPS, on a straight line between the two rows around it; empty where no two rows are.
With --whole the photos are the twelve from inside packages, of 300 to 1411 pixels a side; else they have 256.

photo:  the background's blur and noise are the damage, and recipe `photo` restores it.
many:   the same with a chain of 1000 steps, so that there are many evaluations to save.
known:  the background is out of focus in the clean photo itself, so it has little to restore; the whole is blurred and
        gets noise, and `gaussian_blur_flash_latent_dps`, a solver of several evaluations an image, restores it.

Seconds are the process's, so give it one thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import flashray
from benchmarks.sample_photos import whole_photos
from flashray.degradations.photo import convolve
from flashray.measurement import Photo
from flashray.metrics import LPIPS, load_lpips, psnr
from flashray.restorer import Restorer
from flashray.training.photo_windows import list_photos, load_fitted

CASES = ("photo", "many", "known")
BLUR = 3.0  # pixels, of the background
DRAWS = 1000  # of the bootstrap
NOISE = 0.04  # of the background, on the [0, 1] scale, where it is damage
Row = tuple[float, float, float, float]  # NFE, seconds, PSNR, LPIPS


def subject(height: int, width: int, seed: int, share: float = 0.25) -> Tensor:
    """[1, height, width] 1 on an ellipse of a share of the photo at a random place, 0 outside, with soft edges."""
    row, column, shape = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    down, across = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    tall = (0.22 + 0.12 * shape) * (4 * share) ** 0.5
    wide = share / (torch.pi * tall)
    distance = (((down - 0.2 - 0.6 * row) / tall) ** 2 + ((across - 0.2 - 0.6 * column) / wide) ** 2).sqrt()
    return ((1.15 - distance) / 0.3).clamp(0, 1)[None]


def partly_sharp(x_CHW: Tensor, noise: float, seed: int, share: float = 0.25) -> Tensor:
    """The photo with a background that is blurred and noisy, in steps of 1/255."""
    offset = torch.arange(-10.0, 11.0)
    line = (-offset.square() / (2 * BLUR**2)).exp()
    kernel = line[:, None] * line
    mask = subject(x_CHW.shape[1], x_CHW.shape[2], seed, share)
    background = convolve(x_CHW[None], (kernel / kernel.sum())[None])[0]
    background = background + 2 * noise * torch.randn(x_CHW.shape, generator=torch.Generator().manual_seed(seed))
    mixed = mask * x_CHW + (1 - mask) * background
    return ((mixed.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def restored(
    restorer: Restorer, photo: Photo, x_CHW: Tensor, lpips: LPIPS, scales: Sequence[float], factors: Sequence[float]
) -> list[Row]:
    """With a start for each window at each scale, and with one for the whole photo at each factor."""
    measured = restorer.measure([photo])
    estimate = restorer.estimate(measured)
    whole_BK = estimate.sigma_hat_B[:, None].expand_as(estimate.sigma_BK)
    each = [dataclasses.replace(estimate, sigma_BK=scale * estimate.sigma_BK) for scale in scales]
    alike = [dataclasses.replace(estimate, sigma_BK=factor * whole_BK, spared_BK=None) for factor in factors]
    rows = []
    for one in (*each, *alike):
        began = time.process_time()
        found = restorer.restore_measured([(measured, one)])
        seconds = time.process_time() - began
        (image,) = found.images
        assert image is not None, found.errors
        pair = (image[None], x_CHW[None])
        rows.append((found.nfe[0], seconds, psnr(*pair).item(), lpips(*pair).item()))
    return rows


def mean(rows: Sequence[Row]) -> Row:
    nfe, seconds, psnr_dB, distance = (sum(values) / len(rows) for values in zip(*rows, strict=True))
    return nfe, seconds, psnr_dB, distance


def saved(windows: Row, one_start: Sequence[Row]) -> tuple[float, float] | None:
    """Shares of the evaluations and seconds that mean rows of one start need for the same LPIPS; None out of reach."""
    for (nfe, seconds, _, high), (more_nfe, more_seconds, _, low) in pairwise(one_start):
        if low < high and low <= windows[3] <= high:
            way = (high - windows[3]) / (high - low)
            at = nfe + way * (more_nfe - nfe), seconds + way * (more_seconds - seconds)
            return (1 - windows[0] / at[0] if at[0] else 0.0), 1 - windows[1] / at[1]
    return None


def shares(each: Sequence[Row], alike: Sequence[Sequence[Row]]) -> list[str]:
    """Cells of what starts of windows save: of the photos, and the 95 % interval of photos drawn from them anew.

    Draws in which no single start has the LPIPS of the windows are left out.
    """
    found = saved(mean(each), [mean(rows) for rows in alike])
    if found is None:
        return ["", ""]
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        index = generator.integers(0, len(each), len(each))
        one = saved(mean([each[n] for n in index]), [mean([rows[n] for n in index]) for rows in alike])
        drawn += [] if one is None else [one]
    bounds = np.quantile(drawn, (0.025, 0.975), axis=0).T if drawn else np.full((2, 2), np.nan)
    return [f"{share:.0%} ({low:.0%} … {high:.0%})" for share, (low, high) in zip(found, bounds, strict=True)]


def table(case: str, scales: Sequence[float], factors: Sequence[float], rows: Sequence[Sequence[Row]]) -> str:
    """The rows of a case, of which `rows` has one list a photo: starts of windows, then one start."""
    columns = list(zip(*rows, strict=True))
    each, alike = columns[: len(scales)], columns[len(scales) :]
    lines = [(f"windows, {scale:g} σ̂", some, shares(some, alike)) for scale, some in zip(scales, each, strict=True)]
    lines += [(f"one, {factor:g} σ̂", some, ["", ""]) for factor, some in zip(factors, alike, strict=True)]
    text = []
    for start, some, cells in lines:
        nfe, seconds, psnr_dB, distance = mean(some)
        text.append([case, start, f"{nfe:.2f}", f"{seconds:.3f}", f"{psnr_dB:.2f}", f"{distance:.4f}", *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in text)


def case_of(name: str) -> Restorer:
    if name == "known":
        recipe = "gaussian_blur_flash_latent_dps"
        return flashray.load(recipe, device="cpu", precision="float32", measurement="simulated")
    solver = {"steps": 1000} if name == "many" else {}
    return flashray.load("photo", device="cpu", precision="float32", solver=solver)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--share", type=float, default=0.25, help="of the photo that is the sharp subject")
    parser.add_argument("--scales", type=float, nargs="+", default=(1.0, 1.25, 1.5), help="of the windows' σ̂")
    parser.add_argument("--factors", type=float, nargs="+", default=(1.0, 1.25, 1.5, 2.0), help="of the image's σ̂")
    given = parser.parse_args()
    paths = list_photos(given.folder)
    chosen = paths[:: max(1, len(paths) // given.count)][: given.count]
    photos = list(whole_photos().values()) if given.whole else list(load_fitted(chosen, 256))
    lpips = load_lpips("vgg")
    print(f"{len(photos)} photos, {given.share:g} of each sharp\n")
    print("| case | start | NFE | s / photo | PSNR | LPIPS | NFE saved | seconds saved |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for name in given.cases:
        restorer, rows = case_of(name), []
        for n, x in enumerate(photos):
            if name == "known":
                clean = partly_sharp(x, 0.0, n, given.share)
                photo = restorer.measurer.photo(f"{n}", clean, {"blur_std": 1.5})
            else:
                clean, photo = x, restorer.photo(f"{n}", partly_sharp(x, NOISE, n, given.share))
            rows.append(restored(restorer, photo, clean, lpips, given.scales, given.factors))
        print(table(name, given.scales, given.factors, rows), flush=True)


if __name__ == "__main__":
    main()
