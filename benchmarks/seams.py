"""Whether the borders of windows show in restored photos.

    python -m benchmarks.seams FOLDER [--mosaics 24]

Twelve photos from inside packages and mosaics of four photos of FOLDER, of 512 pixels, are damaged at levels from mild
to heavy and restored by recipe `photo` and by `gaussian_blur_flash_proximal`. Prints the ratio of the damaged, the
restored and the clean photos.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import flashray
from benchmarks.pages.tables import paired_interval
from benchmarks.sample_photos import whole_photos
from flashray.metrics import mean_interval
from flashray.restorer import Restorer
from flashray.training.photo_windows import list_photos, load_fitted

RECIPES = ("photo", "gaussian_blur_flash_proximal")


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


def ratio_in(image_CHW: Tensor, restorer: Restorer) -> float:
    """`seam_ratio` of a photo at the borders of a restorer's windows."""
    windows, factor = restorer.grid.windows((image_CHW.shape[1], image_CHW.shape[2])), restorer.grid.factor
    rows, columns = (
        window_borders(axis.starts_K.tolist(), axis.side, factor) for axis in (windows.rows, windows.columns)
    )
    return seam_ratio(image_CHW, (rows, columns), factor * 3 * restorer.grid.side // 8)


def mosaics(folder: Path, count: int) -> list[Tensor]:
    """[3, 512, 512] photos of two by two; the joints are no borders of windows, and are not beside one."""
    paths = list_photos(folder)
    x = load_fitted(paths[:: max(1, len(paths) // (4 * count))][: 4 * count], 256)
    return [torch.cat([torch.cat([*pair], dim=2) for pair in four.split(2)], dim=1) for four in x.split(4)]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mosaics", type=int, default=24)
    given = parser.parse_args()
    photos = [*whole_photos().values(), *mosaics(given.folder, given.mosaics)]
    print("| recipe | photos | damaged | restored | clean | restored - clean |\n|---|---:|---|---|---|---|", flush=True)
    for recipe in RECIPES:
        restorer = flashray.load(recipe, device="cpu", precision="float32", measurement="simulated")
        ratios: dict[str, list[float]] = {"damaged": [], "restored": [], "clean": []}
        for n, x in enumerate(photos):
            photo = restorer.measurer.photo(f"{n}", x, severity=(n % 12 + 1) / 12)
            restored = restorer.restore_photos([photo]).images[0]
            images = (restorer.measure([photo]).shown_BCHW[0], restored, x)
            for name, image in zip(ratios, images, strict=True):
                assert image is not None
                ratios[name].append(ratio_in(image, restorer))
        cells = [_cell(*mean_interval(values)) for values in ratios.values()]
        cells.append(_cell(*paired_interval(ratios["restored"], ratios["clean"])))
        print(f"| {recipe} | {len(photos)} | " + " | ".join(cells) + " |", flush=True)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.4f} ({low:.4f} … {high:.4f})"


if __name__ == "__main__":
    main()
