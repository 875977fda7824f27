from __future__ import annotations

import math

import pytest
import torch

from flashray.schedule import NoiseSchedule
from flashray.severity import Start
from flashray.severity.regions import hold, spared_windows, window_sigma
from flashray.windows import Windows
from tests.support.windows import corners

SCHEDULE = NoiseSchedule.from_scheduler_config({"beta_schedule": "scaled_linear"}).respaced(100)
SIZES = [(16, 16), (28, 28), (29, 41), (64, 96)]


def window_starts(start: Start, sigma_hw: torch.Tensor, windows: Windows) -> torch.Tensor:
    """[K] where every window begins."""
    return start.start_step(window_sigma(sigma_hw, windows), SCHEDULE)[0]


def sigma_map(size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return 0.1 + 0.6 * torch.rand(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.3, 0.77, 1.0, 3.0, math.nan, math.inf])
def test_a_uniform_map_is_the_plain_start(size: tuple[int, int], sigma: float):
    windows = Windows.of(size, 16)
    start = window_starts(Start(), torch.full(size, sigma), windows)
    plain, _ = Start().start_step(torch.tensor([sigma]), SCHEDULE)
    assert start.tolist() == plain.tolist() * len(windows)
    assert (windows.greatest(start) == plain).all()


def test_one_window_is_the_papers_method_with_the_images_sigma():
    sigma = sigma_map((16, 16))
    for start in (Start(), Start(formula="paper", c=0.7), Start(sigma_scale=1.3)):
        plain, _ = start.start_step(sigma.double().square().mean().sqrt()[None], SCHEDULE)
        assert torch.equal(window_starts(start, sigma, Windows.of((16, 16), 16)), plain)


def test_windows_take_the_root_mean_square_of_their_own_positions():
    windows, sigma = Windows.of((29, 41), 16), sigma_map((29, 41))
    expected = [
        sigma[row : row + 16, column : column + 16].double().square().mean().sqrt() for row, column in corners(windows)
    ]
    torch.testing.assert_close(window_sigma(sigma, windows), torch.stack(expected), rtol=1e-12, atol=0)


def test_padding_says_nothing():
    """A 3 x 20 corner of positions holds the photo; what the map says beyond it has no effect."""
    sigma = sigma_map((16, 28))
    spoilt = sigma.clone()
    spoilt[3:], spoilt[:, 20:] = math.nan, 50.0
    windows = Windows.of((16, 28), 16)
    assert torch.equal(window_sigma(sigma, windows, (3, 20)), window_sigma(spoilt, windows, (3, 20)))
    first = window_sigma(spoilt, windows, (3, 20))[0]
    assert first.item() == pytest.approx(sigma[:3, :16].double().square().mean().sqrt().item())


def test_windows_without_a_fusion_weight_are_spared():
    windows = Windows.of((16, 28), 16)
    weight = torch.zeros(16, 28)
    assert spared_windows(weight, windows).tolist() == [True, True]
    weight[4, 27] = 1e-6
    assert spared_windows(weight, windows).tolist() == [True, False]
    assert spared_windows(torch.full((16, 28), math.nan), windows).tolist() == [False, False]


def test_a_sharp_corner_costs_nothing():
    sigma = torch.full((40, 40), 0.5)
    sigma[:16, :16] = 0
    windows = Windows.of((40, 40), 16)
    start = window_starts(Start(), sigma, windows)
    assert start[0] == 0
    assert (start[1:] > 0).all()
    held = windows.greatest(start) == 0
    assert held[:12, :12].all()
    assert not held[16:].any()
    assert not held[:, 16:].any()


def test_positions_are_active_where_one_of_their_windows_is():
    windows = Windows.of((28, 40), 16)
    start = torch.tensor([3, 0, 7, 1, 5, 2])
    position = windows.greatest(start)
    for i in range(8):
        expected = torch.zeros(28, 40, dtype=torch.bool)
        for (row, column), one in zip(corners(windows), start.tolist(), strict=True):
            if one > i:
                expected[row : row + 16, column : column + 16] = True
        assert torch.equal(position > i, expected)


def test_a_broken_sigma_takes_the_full_chain_in_its_windows_alone():
    sigma = torch.full((40, 40), 0.3)
    sigma[0, 0] = math.nan
    start = window_starts(Start(), sigma, Windows.of((40, 40), 16))
    assert start[0] == len(SCHEDULE)
    assert (start[1:] == start[1]).all()
    assert start[1] < len(SCHEDULE)


def test_full_mode_starts_everywhere_at_pure_noise():
    start = window_starts(Start(mode="full"), sigma_map((40, 40)), Windows.of((40, 40), 16))
    assert (start == len(SCHEDULE)).all()


def test_positions_that_wait_are_the_estimate_with_their_noise():
    generator = torch.Generator().manual_seed(0)
    z, z_hat, noise = (torch.randn(3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    active = torch.rand(5, 6, generator=generator) > 0.5
    alpha = torch.tensor(0.36, dtype=torch.float64)
    held = hold(z, active, z_hat, noise, alpha)
    assert torch.equal(held[:, active], z[:, active])
    torch.testing.assert_close(held[:, ~active], (0.6 * z_hat + 0.8 * noise)[:, ~active])
    assert torch.equal(hold(z, active, z_hat, noise, torch.ones(()).double())[:, ~active], z_hat[:, ~active])


def test_the_latent_that_a_position_joins_with_is_the_start_latent_of_its_step():
    """√ᾱ ẑ + √(1-ᾱ) ε at the ᾱ of the update that it takes part in first."""
    z_hat, noise = torch.randn(1, 3, 4, 4, dtype=torch.float64), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    step = 20  # joins at update 19, so it is held last after update 20
    alpha_prev = SCHEDULE.alphas_cumprod_prev[20]
    held = hold(z_hat[0], torch.zeros(4, 4, dtype=torch.bool), z_hat[0], noise[0], alpha_prev)
    variance = 1 - SCHEDULE.alphas_cumprod[step - 1]
    torch.testing.assert_close(held, ((1 - variance).sqrt() * z_hat + variance.sqrt() * noise)[0])
