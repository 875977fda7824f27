"""Photos for training: square windows of a folder's images, and random and varied views of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from flashray.degradations.photo import convolve, spreading
from flashray.errors import ConfigError, ImageError
from flashray.images import fit_image, from_uint8, is_image_name, open_image, resize, to_uint8
from flashray.shards.place import Place

WINDOW_ZOOM = 1.5  # a window's side over the training size: what random views may crop
WHOLE = 0.5  # share of the batches with views at the scale of whole photos, the finest detail of images in use
GAIN = 1.6  # `vary` multiplies contrast by 1 / GAIN … GAIN
SHIFT = 0.25  # and moves brightness by as much, on [-1, 1]
GRAINY = 0.5  # share of the images that get grain, where grain is asked for
GREY_GRAIN = 0.5  # share of the grainy images whose channels all have the same, as those of film and of grey photos
GRAIN_WIDTH = (0.3, 1.2)  # pixels, of the Gaussian that spreads it


def window_side(size: int) -> int:
    """Side of the windows that views of `size` pixels are cut from."""
    return round(size * WINDOW_ZOOM)


def list_photos(folder: str | Path) -> list[Path]:
    """The image files under a folder, sorted; ConfigError if there is none."""
    root = Path(folder)
    found = sorted(path for path in root.rglob("*") if is_image_name(path.name))
    if not found:
        raise ConfigError(f"photos {folder}: no image files there; name a folder of photos")
    return found


def windows(x_CHW: Tensor, side: int) -> list[Tensor]:
    """Square uint8 windows [3, side, side] of one photo in [-1, 1], its shorter side scaled to `side`.

    A photo clearly longer than wide gives three (both ends and the centre), so that no part of it is lost.
    """
    _, height, width = x_CHW.shape
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    x = resize(x_CHW[None], size)[0]
    slack = max(size) - side
    offsets = [slack // 2] if slack < side // 10 else [0, slack // 2, slack]
    if size[0] > size[1]:
        cut = [x[:, offset : offset + side, :] for offset in offsets]
    else:
        cut = [x[:, :, offset : offset + side] for offset in offsets]
    return [to_uint8(window) for window in cut]


def load_windows(paths: Iterable[Path | Place], side: int) -> Tensor:
    """[n, 3, side, side] uint8 windows of all these photos; ImageError names an unreadable file."""

    def read(path: Path | Place) -> list[Tensor]:
        return windows(open_photo(path, path.read_bytes()), side)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return torch.stack([window for cut in pool.map(read, paths) for window in cut])


def open_photo(path: Path | Place, data: bytes) -> Tensor:
    """[3, H, W] in [-1, 1] of a photo's file; ImageError with its name where it cannot be read."""
    try:
        return open_image(data).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def load_fitted(paths: Iterable[Path | Place], size: int) -> Tensor:
    """[n, 3, size, size] photos in [-1, 1], resized and centre-cropped as the restoration job does."""
    return torch.stack([fit_image(open_photo(path, path.read_bytes()), size, "resize") for path in paths])


def random_views(
    window_BCHW: Tensor,
    size: int,
    generator: torch.Generator,
    widest: float = WINDOW_ZOOM,
    narrowest: float = 1.0,
    whole: float = WHOLE,
) -> Tensor:
    """Random square crops of uint8 windows, resized to `size` and mirrored at random: [B, 3, size, size] in [-1, 1].

    The crop's side is drawn once for each batch (so that one resize is enough), its position and mirroring once for
    each image. In a share `whole` of the batches the side is WINDOW_ZOOM · `size`, which gives the detail of whole
    photos of this size; else it is between `narrowest` and `widest` times `size`, and at most the window's side. A side
    below `size` gives views that are soft at the scale of their pixels, as many photos are.
    """
    batch, _, side, _ = window_BCHW.shape
    device = window_BCHW.device
    low, usual, high = (min(round(size * zoom), side) for zoom in (narrowest, WINDOW_ZOOM, widest))
    at_usual = bool(torch.rand((), generator=generator) < whole)
    crop = usual if at_usual else int(torch.randint(low, high + 1, (1,), generator=generator))
    top_B, left_B = (torch.randint(0, side - crop + 1, (batch, 1, 1), generator=generator).to(device) for _ in "ab")
    mirror_B = (torch.rand(batch, 1, 1, generator=generator) < 0.5).to(device)
    row = torch.arange(crop, device=device)
    x = from_uint8(pixels_at(window_BCHW, top_B + row[:, None], left_B + torch.where(mirror_B, crop - 1 - row, row)))
    return x if crop == size else resize(x, (size, size))  # bilinear would be softer than photos in use


def pixels_at(x_BCHW: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """[B, C, h, w] positions of each image; row and column are long and broadcast to [B, h, w]."""
    image = torch.arange(len(x_BCHW), device=x_BCHW.device)[:, None, None]
    return x_BCHW.permute(0, 2, 3, 1)[image, row, column].permute(0, 3, 1, 2)


def vary(x_BCHW: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Square images in [-1, 1]: a random `share` of them turned, with other colours, contrast and brightness.

    Rotation by quarter turns, exchanged channels, contrast scaled about the image's mean and shifted brightness, each
    drawn once for each image by a generator on the CPU. Detail and contrast decide how hard an image is to encode: this
    varies them, so that a few thousand photos are not memorised.
    """
    batch, channels, device = len(x_BCHW), x_BCHW.shape[1], x_BCHW.device

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)).to(device)

    chosen, half, quarter = draw(0, 1) < share, draw(0, 1) < 0.5, draw(0, 1) < 0.5
    x = torch.where(half, x_BCHW.flip(2, 3), x_BCHW)
    x = torch.where(quarter, x.transpose(2, 3).flip(3), x)
    order_BC = torch.rand(batch, channels, generator=generator).argsort(dim=1).to(device)
    x = x[torch.arange(batch, device=device)[:, None], order_BC]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (mean + GAIN ** draw(-1, 1) * (x - mean) + draw(-SHIFT, SHIFT)).clamp(-1, 1)
    return torch.where(chosen, x, x_BCHW)


def add_grain(x_BCHW: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Images in [-1, 1] of which a share GRAINY gets fine grain with a std of up to `most` on the [0, 1] scale.

    Photos have grain of their own, which is no damage: of film, or noise that demosaicing and scaling spread over
    neighbours. In a share GREY_GRAIN of the grainy images all channels have the same.
    """
    draws_4B = torch.rand(4, len(x_BCHW), generator=generator).to(x_BCHW.device)
    std_B = torch.where(draws_4B[0] < GRAINY, 2 * most * draws_4B[1], 0.0)
    noise = torch.randn_like(x_BCHW)
    noise = torch.where((draws_4B[2] < GREY_GRAIN)[:, None, None, None], noise[:, :1], noise)
    narrow, wide = GRAIN_WIDTH
    grain = convolve(noise, spreading(narrow + (wide - narrow) * draws_4B[3]))
    return (x_BCHW + std_B[:, None, None, None] * grain).clamp(-1, 1)


def shuffled_batches(window_NCHW: Tensor, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """One shuffled pass over the windows in whole batches; the order depends on (seed, epoch) only."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(window_NCHW), generator=generator).to(window_NCHW.device)
    if len(order) < batch_size:
        raise ConfigError(f"batch_size is {batch_size}, but there are only {len(order)} training windows")
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield window_NCHW[order[start : start + batch_size]]
