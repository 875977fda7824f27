"""Photos as data URIs: sizes, limits of bytes, and where the crop lies."""

from __future__ import annotations

import io
from base64 import b64decode

import numpy as np
import pytest
import torch
from PIL import Image

from flashray.report.pictures import BYTES, CROP, WHOLE, Map, crop_box, views
from tests.support.pages import photo_pair


def opened(uri: str, kind: str = "jpeg") -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    return Image.open(io.BytesIO(b64decode(data)))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (128, 128), (500, 720)])
def test_a_small_photo_is_shown_pixel_by_pixel(size: tuple[int, int]) -> None:
    before, after = photo_pair(*size, noise=0.02)
    (view,) = views(before, after)
    assert view.full
    assert (view.height, view.width) == size
    assert opened(view.before).size == opened(view.after).size == (size[1], size[0])
    shown = torch.from_numpy(np.array(opened(view.after))).permute(2, 0, 1) / 127.5 - 1
    assert (shown - after).abs().mean() < 0.02


@pytest.mark.parametrize("size", [(900, 1200), (3000, 700), (20_000, 1), (390, 5000)])
def test_a_large_photo_has_a_crop_at_full_resolution(size: tuple[int, int]) -> None:
    before, after = photo_pair(*size, noise=0.02)
    whole, crop = views(before, after)
    assert not whole.full
    assert max(whole.width, whole.height) == WHOLE[0]
    assert crop.full
    assert (crop.height, crop.width) == (min(CROP[0], size[0]), min(CROP[0], size[1]))
    left, top, width, height = crop.part
    rows, columns = slice(round(top * size[0]), round((top + height) * size[0])), round(left * size[1])
    cut = after[:, rows, columns : columns + crop.width]
    shown = torch.from_numpy(np.array(opened(crop.after))).permute(2, 0, 1) / 127.5 - 1
    assert cut.shape == shown.shape
    assert (shown - cut).abs().mean() < 0.02
    assert round(width * size[1]) == crop.width


def test_noise_keeps_the_limit_of_bytes() -> None:
    noise = torch.rand(3, 1500, 2000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for view in views(noise, noise.flip(1)):
        for uri in (view.before, view.after):
            assert len(b64decode(uri.partition(",")[2])) <= BYTES
    assert len(views(noise[:, :700, :700], noise[:, :700, :700])) == 2, "noise too dear for its size is scaled down"


def test_the_crop_lies_where_the_map_is_highest_or_the_change_is_largest() -> None:
    _, after = photo_pair(1000, 1600)
    severity = torch.zeros(10, 16)
    severity[6:, :3] = 0.8
    left, top, *_ = views(after, after, [Map("Severity", "0", "1", severity)])[1].part
    assert (left, top) == (0.0, 0.6)
    before = after.clone()
    before[:, 100:400, 1200:1500] += 0.5
    left, top, width, height = views(before.clamp(-1, 1), after)[1].part
    assert left <= 1200 / 1600 <= 1500 / 1600 <= left + width + 0.01
    assert top <= 100 / 1000 <= 400 / 1000 <= top + height + 0.01


def test_boxes_lie_inside_the_photo() -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        photo = tuple(int(n) for n in generator.integers(1, 3000, 2))
        size = (min(256, photo[0]), min(256, photo[1]))
        left, top, right, bottom = crop_box(generator.random(generator.integers(1, 40, 2)), photo, size)
        assert (right - left, bottom - top) == size
        assert 0 <= left <= right <= photo[0]
        assert 0 <= top <= bottom <= photo[1]


def test_a_map_has_colours_and_its_unknown_positions_have_none() -> None:
    severity = torch.linspace(0, 1, 400).expand(300, 400).clone()
    severity[:150] = torch.nan
    (view,) = views(*photo_pair(60, 80), [Map("Severity", "0", "1", severity)])
    (uri,) = view.maps
    picture = opened(uri, "png")
    assert max(picture.size) == 96
    pixels = np.array(picture)
    assert pixels[0, 0, 3] == 0
    assert 0 < pixels[-1, 0, 3] < pixels[-1, -1, 3] < 255
    assert pixels[-1, -1, :3].sum() > pixels[-1, 0, :3].sum()
    assert not views(*photo_pair(60, 80))[0].maps
    with pytest.raises(ValueError, match="two sizes"):
        views(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
