from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from flashray.errors import ConfigError, ImageError
from flashray.images import encode_png, from_uint8, to_uint8
from flashray.training.photo_windows import (
    WINDOW_ZOOM,
    add_grain,
    list_photos,
    load_fitted,
    load_windows,
    random_views,
    shuffled_batches,
    windows,
)
from flashray.training.photos import list_places
from tests.support.shard_files import loose_files, write_parquet, write_tars


def gradient(height: int, width: int) -> Tensor:
    """A photo whose red is its column and whose green is its row, in [-1, 1]."""
    x = torch.zeros(3, height, width)
    x[0] = torch.linspace(-1, 1, width)
    x[1] = torch.linspace(-1, 1, height)[:, None]
    return x


@pytest.mark.parametrize(
    ("size", "count"),
    [((40, 40), 1), ((80, 80), 1), ((40, 43), 1), ((40, 60), 3), ((60, 40), 3), ((200, 90), 3), ((17, 300), 3)],
)
def test_windows_are_squares_of_the_shorter_side(size: tuple[int, int], count: int):
    cut = windows(gradient(*size), 40)
    assert len(cut) == count
    assert all(window.shape == (3, 40, 40) and window.dtype == torch.uint8 for window in cut)


@pytest.mark.parametrize("turned", [False, True])
def test_three_windows_lose_no_part_of_a_photo_up_to_three_squares_long(turned: bool):
    x = gradient(50, 120)
    x = x.mT if turned else x
    along = [window[0].float() for window in windows(x, 50)]
    positions = torch.cat([window.mean(dim=1 if turned else 0) for window in along])
    assert positions.min() < 3
    assert positions.max() > 252
    assert positions.sort().values.diff().max() <= 3  # 2.1 levels a pixel


def test_load_windows_reads_a_folder_in_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    colours = {"a.png": -0.5, "b/c.PNG": 0.0, "d.png": 0.5}
    for name, value in colours.items():
        (tmp_path / name).write_bytes(encode_png(torch.full((3, 30, 30), value)))
    (tmp_path / "notes.txt").write_text("not a photo")
    assert [path.name for path in list_photos(tmp_path)] == ["a.png", "c.PNG", "d.png"]
    stack = load_windows(list_photos(tmp_path), 20)
    assert stack.shape == (3, 3, 20, 20)
    assert [int(window.float().mean()) for window in stack] == [
        int(to_uint8(torch.tensor(v))) for v in colours.values()
    ]
    fitted = load_fitted(list_photos(tmp_path), 16)
    assert fitted.shape == (3, 3, 16, 16)
    torch.testing.assert_close(fitted[2], torch.full((3, 16, 16), 0.5), rtol=0, atol=0.01)


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_folder_without_photos_is_a_config_error(folder: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").touch()
    with pytest.raises(ConfigError, match=rf"{folder}: no image files"):
        list_photos(tmp_path / folder)


def test_an_unreadable_photo_is_named(tmp_path: Path):
    (tmp_path / "good.png").write_bytes(encode_png(torch.zeros(3, 20, 20)))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"broken\.png: this is not an image"):
        load_windows(list_photos(tmp_path), 20)
    with pytest.raises(ImageError, match=r"broken\.png: this is not an image"):
        load_fitted(list_photos(tmp_path), 16)


def noise_windows(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [40, 32, 20])
def test_views_have_their_size_range_and_are_a_function_of_the_generator(side: int):
    stack = noise_windows(6, side)

    def view(seed: int) -> Tensor:
        return random_views(stack, 32, torch.Generator().manual_seed(seed))

    for seed in range(10):
        x = view(seed)
        assert x.shape == (6, 3, 32, 32)
        assert x.dtype == torch.float32
        assert x.min() >= -1
        assert x.max() <= 1
        assert torch.equal(x, view(seed))
    assert not torch.equal(view(0), view(1))


def test_views_are_crops_of_every_scale_place_and_both_hands():
    side = round(32 * WINDOW_ZOOM)
    red = (torch.arange(side) * 5)[None, :].expand(side, side)
    green = (torch.arange(side) * 5)[:, None].expand(side, side)
    stack = torch.stack([red, green, torch.zeros_like(red)]).to(torch.uint8).expand(16, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    lefts, tops, mirrored, spans = set(), set(), [], set()
    for _ in range(120):
        x = (random_views(stack, 32, generator) + 1) * 127.5 / 5
        ends = x[:, 0, 5, [0, -1]]
        mirrored += (ends[:, 0] > ends[:, 1]).tolist()
        spans.add(round((ends[0, 0] - ends[0, 1]).abs().item()) + 1)
        lefts |= {round(value) for value in ends.min(dim=1).values.tolist()}
        tops |= {round(value) for value in x[:, 1].amin(dim=(1, 2)).tolist()}
    assert spans <= set(range(32, side + 1))
    assert {32, 47} <= spans  # a resize pulls the ends inwards
    assert set(range(9)) <= lefts
    assert set(range(9)) <= tops
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6


def test_narrow_crops_give_views_that_are_soft_at_the_scale_of_their_pixels():
    stack = noise_windows(16, 64)

    def contrast_of_neighbours(zoom: float) -> float:
        x = random_views(stack, 32, torch.Generator().manual_seed(0), zoom, zoom, whole=0.0)
        assert x.shape == (16, 3, 32, 32)
        return ((x[..., 1:] - x[..., :-1]).square().mean() / x.var()).item()

    soft, sharp = contrast_of_neighbours(0.5), contrast_of_neighbours(1.0)
    assert sharp == pytest.approx(2.0, rel=0.1)  # white noise
    assert soft < 0.6 * sharp


@pytest.mark.parametrize("whole", [0.0, 1.0])
def test_a_share_of_the_batches_has_the_usual_crop(whole: float):
    red = (torch.arange(64) * 4)[None, :].expand(64, 64)
    stack = torch.stack([red] * 3).to(torch.uint8).expand(4, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    spans = set()
    for _ in range(20):
        x = (random_views(stack, 32, generator, 2.0, 1.0, whole) + 1) * 127.5 / 4
        spans.add(round((x[0, 0, 5, 20] - x[0, 0, 5, 10]).abs().item()))
    assert (spans == {15}) == (whole == 1.0)  # ten pixels of a view, WINDOW_ZOOM times as many of the window


def test_half_of_the_images_get_grain_that_is_spread_over_neighbours():
    x = torch.zeros(400, 3, 24, 24)
    torch.manual_seed(0)
    grainy = add_grain(x, 0.02, torch.Generator().manual_seed(0))
    std = grainy.std(dim=(1, 2, 3)) / 2  # on [0, 1]
    assert 0.4 < (std > 0).float().mean() < 0.6
    assert std.max() < 0.025
    assert std[std > 0].mean() == pytest.approx(0.01, rel=0.15)
    grain = grainy[std > 0.01]
    neighbours = (grain[..., 1:] * grain[..., :-1]).mean(dim=(1, 2, 3)) / grain.square().mean(dim=(1, 2, 3))
    assert neighbours.min() < 0.1  # hardly spread
    assert neighbours.max() > 0.7  # widely
    grey = (grain[:, 0] == grain[:, 1]).flatten(1).all(dim=1).float().mean()
    assert 0.3 < grey < 0.7
    bright = add_grain(torch.ones_like(x), 0.02, torch.Generator().manual_seed(0))
    assert bright.max() <= 1


def test_an_unscaled_view_is_exactly_its_pixels():
    stack = noise_windows(4, 32)
    x = random_views(stack, 32, torch.Generator().manual_seed(0))  # nothing to choose but the hand
    for view, window in zip(x, stack, strict=True):
        exact = from_uint8(window)
        assert torch.equal(view, exact) or torch.equal(view, exact.flip(2))


def test_batches_cover_each_window_once_an_epoch_in_another_order():
    stack = torch.arange(23, dtype=torch.uint8)[:, None, None, None].expand(23, 3, 2, 2)

    def order(epoch: int, seed: int = 0) -> list[int]:
        return [int(value) for batch in shuffled_batches(stack, 5, seed, epoch) for value in batch[:, 0, 0, 0]]

    assert all(len(batch) == 5 for batch in shuffled_batches(stack, 5, 0, 0))
    orders = [order(epoch) for epoch in range(8)]
    assert all(len(one) == len(set(one)) == 20 for one in orders)  # whole batches only
    assert len({tuple(one) for one in orders}) == 8
    assert set.union(*(set(one) for one in orders)) == set(range(23))
    assert orders[3] == order(3)
    assert order(0, seed=1) != orders[0]


def test_fewer_windows_than_a_batch_is_a_config_error():
    with pytest.raises(ConfigError, match="batch_size is 8, but there are only 5"):
        next(shuffled_batches(noise_windows(5, 4), 8, 0, 0))


@pytest.mark.parametrize("kind", ["loose", "tars", "parquet", "one tar"])
def test_photos_of_shards_give_the_same_windows(tmp_path: Path, kind: str):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate("abcde"):
        (folder / f"{name}.png").write_bytes(encode_png(torch.full((3, 24 + i, 40), i / 5)))
    whole = load_windows(list_photos(folder), 20)
    files = loose_files(folder)
    where = tmp_path / kind
    if kind == "loose":
        where = folder
    elif kind == "parquet":
        write_parquet(where / "0.parquet", {"key": list(files), "image": list(files.values())})
    else:
        write_tars(where, files, 5 if kind == "one tar" else 2)
    if kind == "one tar":
        where = where / "00000.tar"
    places = list_places(str(where))
    assert torch.equal(load_windows(places, 20), whole)
    assert torch.equal(load_fitted(places, 16), load_fitted(list_photos(folder), 16))
    from flashray.training.ray_train import cut_windows

    batch = pa.Table.from_pylist([place._asdict() for place in places])
    assert torch.equal(torch.from_numpy(cut_windows(batch, 20)["window"]), whole)
    assert len({place.name for place in places}) == 5


def test_shards_that_cannot_be_photos(tmp_path: Path):
    write_tars(tmp_path / "tars", {"a.txt": b"1"}, 1)
    with pytest.raises(ConfigError, match="no image files there"):
        list_places(str(tmp_path / "tars"))
    (tmp_path / "tars" / "a.png").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"photos .* holds loose images \('a.png'\) and tars"):
        list_places(str(tmp_path / "tars"))
    with pytest.raises(ConfigError, match="no image files there"):
        list_places(str(tmp_path / "absent"))
    write_parquet(tmp_path / "p" / "0.parquet", {"key": ["a"], "image": pa.array([None], pa.binary())})
    with pytest.raises(OSError, match=r"0\.parquet at 0 holds no image"):
        load_windows(list_places(str(tmp_path / "p")), 20)
