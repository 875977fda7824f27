"""Recipe `photo` on one kind of damage at a time: what it takes up by default, and what with a lower threshold.

    python -m benchmarks.photo_kinds

The twelve photos from inside packages, at their own size. Prints Markdown: PSNR (dB, at most `CAP`) / LPIPS (VGG) of
the damaged and of the restored photos, and how many photos came back as they were given.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

import flashray
from benchmarks.photo_levels import CAP, figures
from benchmarks.sample_photos import whole_photos
from flashray.images import as_image, to_pil
from flashray.metrics import LPIPS, load_lpips
from flashray.restorer import Restorer

Damage = Callable[[Image.Image], Image.Image]
THRESHOLDS = (0.35, 0.1)  # of the fusion: the recipe's, and one that restores more


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
def cells(restorer: Restorer, given: list[Tensor], clean: list[Tensor], lpips: LPIPS) -> tuple[str, int]:
    """(mean PSNR / LPIPS of the restored photos, how many came back as given)."""
    restored = [image for image in restorer(given).images if image is not None]
    assert len(restored) == len(given)
    same = sum(bool(torch.equal(one, other)) for one, other in zip(restored, given, strict=True))
    return mean(restored, clean, lpips), same


@torch.no_grad()
def mean(images: list[Tensor], clean: list[Tensor], lpips: LPIPS) -> str:
    found = [figures(image[None], x[None], lpips) for image, x in zip(images, clean, strict=True)]
    decibels, distances = (np.mean([one[n] for one in found]) for n in (0, 1))
    return f"{decibels:.2f} / {distances:.3f}"


def main() -> None:
    lpips, clean = load_lpips("vgg"), list(whole_photos().values())
    restorers = [flashray.load("photo", device="cpu", fusion={"threshold": threshold}) for threshold in THRESHOLDS]
    print(f"{len(clean)} photos; PSNR (at most {CAP:g} dB) / LPIPS (VGG), and how many came back as given\n")
    heads = " | ".join(f"threshold {threshold:g} | as given" for threshold in THRESHOLDS)
    print(f"| damage | given | {heads} |\n|---|---|---|---:|---|---:|", flush=True)
    for name, damage in KINDS.items():
        given = [as_image(damage(to_pil(x))) for x in clean]
        found = [cells(restorer, given, clean, lpips) for restorer in restorers]
        print(
            f"| {name} | {mean(given, clean, lpips)} | " + " | ".join(f"{s} | {n}" for s, n in found) + " |", flush=True
        )


if __name__ == "__main__":
    main()
