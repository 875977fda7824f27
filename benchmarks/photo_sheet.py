"""docs/photo-sheet.jpg: twelve photos, clean, damaged and restored by recipe `photo`, at full resolution.

    python -m benchmarks.photo_sheet

No picture was chosen by taste. The photos are all of `sample_photos.whole_photos`, in the order of their names. Photo n
is damaged by the family `photo` at the level n/11, from nothing to the heaviest, as a whole and at its own size, and
its middle is shown. From left to right: clean, damaged, restored; two photos a row.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

import flashray
from benchmarks.sample_photos import whole_photos
from flashray.images import to_pil

SIDE = 256  # pixels of a photo's middle
A_ROW = 2
TARGET = Path("docs/photo-sheet.jpg")


@torch.no_grad()
def main() -> None:
    restorer = flashray.load("photo", device="cpu", precision="float32", measurement="simulated")
    photos = sorted(whole_photos().items())
    sheet = Image.new("RGB", (3 * A_ROW * SIDE, -(-len(photos) // A_ROW) * SIDE))
    for n, (name, x) in enumerate(photos):
        photo = restorer.measurer.photo(name, x, severity=n / (len(photos) - 1))
        measured, restored = restorer.measure([photo]), restorer.restore_photos([photo])
        top, left = (x.shape[1] - SIDE) // 2, (x.shape[2] - SIDE) // 2
        pictures = (to_pil(x), to_pil(measured.shown_BCHW[0]), restored.pil())
        for column, picture in enumerate(pictures):
            place = ((3 * (n % A_ROW) + column) * SIDE, n // A_ROW * SIDE)
            sheet.paste(picture.crop((left, top, left + SIDE, top + SIDE)), place)
        print(f"{name}, level {n / (len(photos) - 1):.2f}: σ̂ {restored.sigma_hat[0]:.3f}, NFE {restored.nfe[0]:.2f}")
    sheet.save(TARGET, quality=88, subsampling=0)
    print(f"{TARGET}: {sheet.width} x {sheet.height}, {TARGET.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
