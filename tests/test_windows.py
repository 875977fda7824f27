from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from flashray.errors import ConfigError
from flashray.windows import Axis, LatentGrid, View, Windows, bump, crop, pad_to, starts_of, vote, windowed_epsilon
from tests.support.windows import corners

SIZES = [(16, 16), (16, 17), (17, 16), (28, 28), (29, 40), (64, 96), (16, 250)]
SIDES = [1, 2, 3, 8, 16]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("length", [16, 17, 20, 27, 28, 29, 100])
def test_windows_cover_every_position_at_three_quarters_of_a_window(length: int, side: int):
    starts = starts_of(length, side)
    assert starts[0] == 0
    assert starts[-1] == length - side
    strides = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(0 < stride <= max(1, 3 * side // 4) for stride in strides)
    assert all(stride == max(1, 3 * side // 4) for stride in strides[:-1])
    assert {position for start in starts for position in range(start, start + side)} == set(range(length))


def test_a_latent_smaller_than_a_window_is_refused():
    with pytest.raises(ConfigError, match="smaller than a window of 16"):
        starts_of(15, 16)


@pytest.mark.parametrize("side", SIDES)
def test_the_bump_is_smooth_symmetric_and_positive(side: int):
    weight = bump(side)
    assert (weight > 0).all()
    torch.testing.assert_close(weight, weight.flip(0))
    if side == 16:
        assert weight.diff().abs().max() < 0.2  # sin² never moves by more than π/side


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", SIDES)
def test_shares_are_the_normalised_weights(size: tuple[int, int], side: int):
    """Against Σ_k w_k ε_k / Σ_k w_k, added up window by window."""
    windows = Windows.of(size, side)
    epsilon = random(len(windows), 2, side, side)
    weight = torch.outer(bump(side), bump(side))
    total, weights = torch.zeros(2, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for (row, column), one in zip(corners(windows), epsilon, strict=True):
        total[:, row : row + side, column : column + side] += weight * one
        weights[row : row + side, column : column + side] += weight
    torch.testing.assert_close(windows.fuse(epsilon), total / weights, rtol=1e-12, atol=1e-13)
    for axis in (windows.rows, windows.columns):
        torch.testing.assert_close(axis.share_ML.sum(dim=0), torch.ones(axis.share_ML.shape[1]).double())


@pytest.mark.parametrize("size", SIZES)
def test_cut_gives_the_slices(size: tuple[int, int]):
    windows, z = Windows.of(size, 16), random(3, *size)
    for (row, column), window in zip(corners(windows), windows.cut(z), strict=True):
        assert torch.equal(window, z[:, row : row + 16, column : column + 16])


@pytest.mark.parametrize("size", SIZES)
def test_what_windows_agree_on_comes_back(size: tuple[int, int]):
    windows, z = Windows.of(size, 16), random(3, *size)
    torch.testing.assert_close(windows.fuse(windows.cut(z)), z, rtol=1e-14, atol=1e-15)


def test_positions_of_one_window_alone_are_not_rounded():
    windows, z = Windows.of((28, 28), 16), random(3, 28, 28)
    fused = windows.fuse(windows.cut(z))
    assert torch.equal(fused[:, :12, :12], z[:, :12, :12])
    assert torch.equal(fused[:, 16:, 16:], z[:, 16:, 16:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_window_comes_back_to_the_last_bit(dtype: torch.dtype):
    windows, z = Windows.of((16, 16), 16), random(3, 16, 16).to(dtype)
    assert torch.equal(windows.fuse(windows.cut(z)), z)


@pytest.mark.parametrize("size", SIZES)
def test_the_greatest_of_the_windows_that_cover_a_position(size: tuple[int, int]):
    windows = Windows.of(size, 16)
    value = torch.randint(0, 100, (len(windows),), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(size, dtype=torch.long)
    for (row, column), one in zip(corners(windows), value, strict=True):
        patch = expected[row : row + 16, column : column + 16]
        patch.copy_(patch.clamp(min=int(one)))
    assert torch.equal(windows.greatest(value), expected)


# --- photos ---


@pytest.mark.parametrize(
    ("size", "padded", "latent"),
    [
        ((128, 128), (128, 128), (16, 16)),
        ((1, 1), (128, 128), (16, 16)),
        ((1, 20_000), (128, 20_000), (16, 2500)),
        ((129, 127), (136, 128), (17, 16)),
        ((427, 640), (432, 640), (54, 80)),
    ],
)
def test_photos_are_padded_to_whole_positions_and_one_window(
    size: tuple[int, int], padded: tuple[int, int], latent: tuple[int, int]
):
    grid = LatentGrid(factor=8, side=16)
    assert grid.padded_size(size) == padded
    assert grid.latent_size(size) == latent
    assert grid.windows(size).size == latent
    x = torch.rand(2, 3, *size)
    whole = grid.pad(x)
    assert whole.shape[2:] == padded
    assert torch.equal(crop(whole, size), x)
    assert torch.equal(whole[..., -1, -1], x[..., -1, -1])
    if size == padded:
        assert whole is x


def test_padding_repeats_the_last_row_and_column():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    expected = torch.tensor([[0.0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]])
    assert torch.equal(pad_to(x, (3, 4))[0, 0], expected)


@pytest.mark.parametrize(("factor", "side"), [(8, 16), (1, 3), (4, 7)])
def test_the_norm_scale_is_exactly_one_at_the_priors_size(factor: int, side: int):
    assert LatentGrid(factor, side).norm_scale((factor * side, factor * side)) == 1.0


@pytest.mark.parametrize(
    ("size", "positions"), [((100, 3), 13 * 1), ((64, 64), 8 * 8), ((130, 128), 17 * 16), ((256, 512), 32 * 64)]
)
def test_the_norm_scale_is_the_root_of_the_positions_that_hold_the_photo(size: tuple[int, int], positions: int):
    """Of windows of 16 × 16; padding, which has no residual, does not count."""
    assert LatentGrid(factor=8, side=16).norm_scale(size) == pytest.approx(math.sqrt(positions / 16**2), rel=1e-15)


# --- the denoiser on windows ---

ALPHAS = torch.linspace(0.99, 0.01, 100, dtype=torch.float64)


def positionwise(z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
    """E[ε | z] of independent N(½, ¼) elements: a function of each position alone."""
    alpha = ALPHAS[timestep_B][:, None, None, None]
    return (1 - alpha).sqrt() * (z_BCHW - alpha.sqrt() / 2) / (alpha / 4 + 1 - alpha)


def local(z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
    """A denoiser whose answer depends on the window and on the time."""
    mean = z_BCHW.mean(dim=(2, 3), keepdim=True)
    return torch.tanh(z_BCHW - mean) * (1 + timestep_B[:, None, None, None] / 100)


def views_of(sizes: list[tuple[int, int]], side: int = 16, start: int = 3) -> list[View]:
    return [
        View(random(3, *size, seed=n), torch.tensor(start + 7 * n), Windows.of(size, side))
        for n, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("slots", [1, 5, 1000])
def test_windows_of_a_positionwise_denoiser_are_the_whole(slots: int):
    views = views_of(SIZES)
    found, batches = windowed_epsilon(positionwise, views, slots)
    assert sum(batches) == sum(len(view.windows) for view in views)
    assert max(batches) <= slots
    for view, one in zip(views, found, strict=True):
        whole = positionwise(view.z_CHW[None], view.timestep[None])[0]
        torch.testing.assert_close(one, whole, rtol=1e-12, atol=1e-12)


def test_no_result_depends_on_how_windows_fall_into_batches():
    views = views_of(SIZES)
    together, _ = windowed_epsilon(local, views, 7)
    alone = [windowed_epsilon(local, [view], 1000)[0][0] for view in views]
    backwards, _ = windowed_epsilon(local, views[::-1], 3)
    for one, other, third in zip(together, alone, backwards[::-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(one, third, rtol=1e-13, atol=1e-14)


def test_a_latent_of_one_window_is_what_the_denoiser_says_to_the_last_bit():
    convolution = torch.nn.Conv2d(3, 3, 3, padding=1)
    views = [View(random(3, 16, 16, seed=n).float(), torch.tensor(n), Windows.of((16, 16), 16)) for n in range(4)]
    with torch.no_grad():
        found, batches = windowed_epsilon(lambda z, t: convolution(z) * (1 + t[:, None, None, None]), views, 4)
        expected = convolution(torch.stack([view.z_CHW for view in views])) * torch.arange(1, 5)[:, None, None, None]
    assert batches == [4]
    assert torch.equal(torch.stack(found), expected)


def test_windows_that_are_not_active_vote_for_the_estimate():
    windows, z, z_hat = Windows.of((28, 28), 16), random(3, 28, 28), random(3, 28, 28, seed=1)
    alpha = ALPHAS[40]
    active = torch.tensor([True, False, False, True])
    view = View(z, torch.tensor(40), windows, active, vote(z, z_hat, alpha))
    seen: list[int] = []

    def counting(window: Tensor, timestep: Tensor) -> Tensor:
        seen.append(len(window))
        return local(window, timestep)

    (found,), batches = windowed_epsilon(counting, [view], 8)
    assert seen == batches == [2]
    expected = windows.cut((z - alpha.sqrt() * z_hat) / (1 - alpha).sqrt())
    expected[active] = local(windows.cut(z)[active], torch.tensor([40, 40]))
    torch.testing.assert_close(found, windows.fuse(expected), rtol=1e-13, atol=1e-13)
    # a position that no active window covers gets ẑ as its posterior mean
    z0 = (z - (1 - alpha).sqrt() * found) / alpha.sqrt()
    torch.testing.assert_close(z0[:, :12, 16:], z_hat[:, :12, 16:], rtol=1e-10, atol=1e-10)


def test_no_window_at_all_is_no_call():
    z = random(3, 28, 28)
    view = View(z, torch.tensor(4), Windows.of((28, 28), 16), torch.zeros(4, dtype=torch.bool), z)
    (found,), batches = windowed_epsilon(lambda *_: pytest.fail("called"), [view], 8)
    assert batches == []
    torch.testing.assert_close(found, z)


@pytest.mark.parametrize("slots", [2, 100])
def test_gradients_pass_through_windows_and_through_batches_that_are_computed_again(slots: int):
    z = random(3, 29, 40).requires_grad_()
    view = View(z, torch.tensor(4), Windows.of((29, 40), 16))
    (found,), _ = windowed_epsilon(positionwise, [view], slots)
    (gradient,) = torch.autograd.grad(found.square().sum(), z)
    (expected,) = torch.autograd.grad(positionwise(z[None], torch.tensor([4])).square().sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_an_axis_of_windows_is_small_in_memory():
    """A photo of 50 megapixels has 722 positions to a side."""
    axis = Axis.of(1083, 16)
    assert axis.share_ML.shape[0] <= 3
