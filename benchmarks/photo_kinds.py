"""Recipe `photo` on one kind of damage at a time, by default and with every correction counted as damage.

    python -m benchmarks.photo_kinds

The photos from inside packages that have less than half a megapixel, at their own size. Prints Markdown: PSNR (dB, at
most `CAP`) and LPIPS (VGG) of the damaged and of the restored photos, and how many came back as they were given.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

import flashray
from benchmarks.photo_levels import CAP
from benchmarks.sample_photos import whole_photos
from flashray.images import as_image, to_pil
from flashray.metrics import LPIPS, load_lpips, psnr
from flashray.restorer import Restorer

Damage = Callable[[Image.Image], Image.Image]
MOST = 500_000  # pixels


def jpeg(quality: int) -> Damage:
    def damage(picture: Image.Image) -> Image.Image:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    return damage


def blur(std: float) -> Damage:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(std))


def noise(levels: float) -> Damage:
    def damage(picture: Image.Image) -> Image.Image:
        pixels = np.asarray(picture, np.float64)
        drawn = np.random.default_rng(0).normal(0, levels, pixels.shape)
        return Image.fromarray((pixels + drawn).round().clip(0, 255).astype(np.uint8))

    return damage


def enlarged(times: int) -> Damage:
    def damage(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        small = picture.resize((width // times, height // times), Image.Resampling.LANCZOS)
        return small.resize((width, height), Image.Resampling.BICUBIC)

    return damage


KINDS: dict[str, Damage] = {
    **{f"noise of {levels} grey levels": noise(levels) for levels in (5, 10, 15, 20)},
    **{f"Gaussian blur of {std:g} pixels": blur(std) for std in (1, 1.5, 2, 3)},
    **{f"JPEG of quality {quality}": jpeg(quality) for quality in (50, 30, 20, 10)},
    **{f"enlarged {times} times": enlarged(times) for times in (2, 3)},
}


@torch.no_grad()
def mean(images: list[Tensor], clean: list[Tensor], lpips: LPIPS) -> str:
    pairs = [(image[None], x[None]) for image, x in zip(images, clean, strict=True)]
    decibels = np.mean([psnr(*pair).clamp(max=CAP).item() for pair in pairs])
    return f"{decibels:.2f} / {np.mean([lpips(*pair).item() for pair in pairs]):.4f}"


def cells(restorer: Restorer, given: list[Tensor], clean: list[Tensor], lpips: LPIPS) -> str:
    """Means of the restored photos | how many came back as given."""
    restored = [image for image in restorer(given).images if image is not None]
    same = sum(torch.equal(one, other) for one, other in zip(restored, given, strict=True))
    return f"{mean(restored, clean, lpips)} | {same}"


def main() -> None:
    clean, lpips = [x for x in whole_photos().values() if x[0].numel() < MOST], load_lpips("vgg")
    restorers = [flashray.load("photo", device="cpu"), flashray.load("photo", device="cpu", fusion={"grain": 0.0})]
    print(f"{len(clean)} photos; PSNR (at most {CAP:g} dB) / LPIPS (VGG), and how many came back as given\n")
    print("| damage | given | restored | as given | grain 0 | as given |\n|---|---:|---:|---:|---:|---:|", flush=True)
    for name, damage in KINDS.items():
        given = [as_image(damage(to_pil(x))) for x in clean]
        restored = " | ".join(cells(restorer, given, clean, lpips) for restorer in restorers)
        print(f"| {name} | {mean(given, clean, lpips)} | {restored} |", flush=True)


if __name__ == "__main__":
    main()
