"""docs/photo.jpg: photos of scikit-image, damaged on purpose (top) and restored by the recipe `photo` (bottom).

python -m benchmarks.showcase
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage import data

import flashray

SIDE = 240  # pixels of a photo that are shown, at full resolution
TARGET = Path("docs/photo.jpg")


def noisy(image: Image.Image, std: float) -> Image.Image:
    """Gaussian noise of this many grey levels."""
    pixels = np.asarray(image, dtype=np.float64)
    noise = np.random.default_rng(0).normal(0, std, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def enlarged(image: Image.Image, quality: int) -> Image.Image:
    """Half the size, enlarged again, and a JPEG of this quality."""
    small = image.resize((image.width // 2, image.height // 2))
    buffer = io.BytesIO()
    small.resize(image.size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def main() -> None:
    astronaut, coffee, cat = (Image.fromarray(photo) for photo in (data.astronaut(), data.coffee(), data.chelsea()))
    given = [
        (noisy(astronaut, 20), (110, 20)),
        (astronaut.filter(ImageFilter.GaussianBlur(2)), (110, 20)),
        (noisy(coffee.filter(ImageFilter.GaussianBlur(1.5)), 10), (180, 80)),
        (enlarged(coffee, 40), (180, 80)),
        (noisy(cat, 25), (60, 20)),
        (cat, (60, 20)),
    ]
    restored = flashray.load("photo", device="cpu", precision="float32")([image for image, _ in given])
    sheet = Image.new("RGB", (SIDE * len(given), 2 * SIDE))
    for column, (image, (left, top)) in enumerate(given):
        box = (left, top, left + SIDE, top + SIDE)
        sheet.paste(image.crop(box), (column * SIDE, 0))
        sheet.paste(restored.pil(column).crop(box), (column * SIDE, SIDE))
    sheet.save(TARGET, quality=90, subsampling=0)
    print(f"{TARGET}: σ̂ {[round(sigma, 3) for sigma in restored.sigma_hat]}, NFE {restored.nfe}")


if __name__ == "__main__":
    main()
