"""Two versions of a photo as data URIs: the whole photo and, of a large one, a crop at full resolution.

Every picture has a limit of bytes, so that the size of a page does not depend on what the archive holds.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops
from torch import Tensor

from flashray.images import saved, to_pil

WHOLE = (720, 560, 440, 340, 256)  # pixels of the longer side of a photo that is shown whole, the first that fits
CROP = (400, 320, 256)  # pixels a side of a crop, the first that fits
BYTES = 64_000  # of a JPEG; noise of the smallest sizes stays below it
_QUALITIES = (92, 84, 72, 60)
_FULL_COLOUR = 84  # from this quality on, colour has the resolution of the brightness
_MAP_SIDE = 96  # positions of the longer side of a map
_CHANGE_SIDE = 512  # of the grid on which the crop is looked for

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Sizes = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Map:
    """Values over a photo."""

    name: str  # of its switch
    low: str  # what 0 stands for
    high: str  # what 1 stands for
    values_hw: Tensor  # [h, w] from 0 to 1 at positions of the photo, of any resolution; NaN where nothing is known


@dataclass(frozen=True)
class View:
    """A photo, or a part of it, before and after."""

    width: int  # in pixels, of both pictures
    height: int
    before: str  # a data URI, as after
    after: str
    maps: Sequence[str] = ()  # data URIs of the maps over it
    part: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, width, height; shares of the photo
    full: bool = True  # whether a pixel of the pictures is a pixel of the photo


def views(before_CHW: Tensor, after_CHW: Tensor, maps: Sequence[Map] = ()) -> list[View]:
    """The whole photo, and a crop at full resolution where the whole one is scaled down.

    The pictures are [3, H, W] in [-1, 1]; ValueError where their sizes differ. The crop lies where the first map is
    highest on the mean or, without one, where the photo has changed most.
    """
    if before_CHW.shape != after_CHW.shape:
        raise ValueError(f"two sizes of one photo: {list(before_CHW.shape)} and {list(after_CHW.shape)}")
    pair = (to_pil(before_CHW), to_pil(after_CHW))
    values = [one.values_hw.double().cpu().numpy() for one in maps]
    photo = pair[0].size
    whole = _view(_scaled(pair), photo, values)
    if whole.full:
        return [whole]
    weight = np.nan_to_num(values[0]) if values else _change(pair)
    return [whole, _view(_cropped(pair, weight), photo, values)]


def crop_box(weight_hw: npt.NDArray[np.float64], photo: Sizes, size: Sizes) -> Box:
    """The part of a photo, of this size, on which the mean of a map over the photo is highest; the first of equals."""
    rows, columns = weight_hw.shape
    width, height = (max(1, round(n * of / total)) for n, of, total in zip(size, (columns, rows), photo, strict=True))
    total = np.pad(weight_hw, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    left = min(round(int(column) * photo[0] / columns), photo[0] - size[0])
    top = min(round(int(row) * photo[1] / rows), photo[1] - size[1])
    return left, top, left + size[0], top + size[1]


Candidate = tuple[Box, tuple[Image.Image, ...]]  # the part of the photo, and its pictures before and after


def _scaled(pair: tuple[Image.Image, ...]) -> Iterator[Candidate]:
    """The whole photo at each size of `WHOLE`, never enlarged."""
    width, height = pair[0].size
    for side in WHOLE:
        scale = min(1.0, side / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        smaller = (one if size == one.size else one.resize(size, Image.Resampling.LANCZOS) for one in pair)
        yield (0, 0, width, height), tuple(smaller)


def _cropped(pair: tuple[Image.Image, ...], weight_hw: npt.NDArray[np.float64]) -> Iterator[Candidate]:
    width, height = pair[0].size
    for side in CROP:
        box = crop_box(weight_hw, pair[0].size, (min(side, width), min(side, height)))
        yield box, tuple(one.crop(box) for one in pair)


def _change(pair: tuple[Image.Image, ...]) -> npt.NDArray[np.float64]:
    """How much each position has changed, on a coarse grid."""
    difference = ImageChops.difference(*pair).convert("L")
    return np.asarray(difference.reduce(max(1, max(difference.size) // _CHANGE_SIDE)), np.float64)


def _view(candidates: Iterable[Candidate], photo: Sizes, maps: Sequence[npt.NDArray[np.float64]]) -> View:
    """The first candidate whose pictures keep the limit of bytes, else the last."""
    for box, pictures in candidates:  # noqa: B007  (both are those of the last one tried)
        files = [_jpeg(picture) for picture in pictures]
        if all(len(data) <= BYTES for data in files):
            break
    before, after = (f"data:image/jpeg;base64,{b64encode(data).decode()}" for data in files)
    (width, height), (left, top, right, bottom) = pictures[0].size, box
    part = (left / photo[0], top / photo[1], (right - left) / photo[0], (bottom - top) / photo[1])
    uris = [_map_uri(values_hw, part) for values_hw in maps]
    return View(width, height, before, after, uris, part, (width, height) == (right - left, bottom - top))


def _jpeg(picture: Image.Image) -> bytes:
    """At the highest quality that keeps the limit of bytes, else at the lowest."""
    for quality in _QUALITIES:
        data = saved(picture, "JPEG", quality=quality, subsampling=0 if quality >= _FULL_COLOUR else 2)
        if len(data) <= BYTES:
            break
    return data


def _map_uri(values_hw: npt.NDArray[np.float64], part: tuple[float, ...]) -> str:
    """A part of a map as a small PNG in colours; the lower, the more transparent, and where it is NaN entirely."""
    from matplotlib import colormaps

    rows, columns = values_hw.shape
    left, top, width, height = part
    down = slice(int(top * rows), max(int(top * rows) + 1, round((top + height) * rows)))
    across = slice(int(left * columns), max(int(left * columns) + 1, round((left + width) * columns)))
    shown = values_hw[down, across].clip(0, 1)
    coloured = colormaps["inferno"](np.ma.masked_invalid(shown), bytes=True)
    coloured[..., 3] = np.nan_to_num(shown * 150 + 40) * np.isfinite(shown)  # the photo is seen where values are low
    picture = Image.fromarray(coloured)
    picture.thumbnail((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BOX)
    return f"data:image/png;base64,{b64encode(saved(picture, 'PNG')).decode()}"
