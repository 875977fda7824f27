from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from flashray import position_noise
from flashray.position_noise import normal_at
from flashray.seeding import STREAM_SOLVER, STREAM_START, image_seed

SEEDS = torch.tensor([image_seed(0, f"photo {i}.png") for i in range(5)])
STEPS = torch.tensor([0, 3, 3, 999, 250])


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 32])
@pytest.mark.parametrize("corner", [(0, 0), (0, 7), (11, 0), (5, 13)])
def test_the_noise_of_a_slice_is_the_slice_of_the_noise(channels: int, corner: tuple[int, int]):
    whole = normal_at(SEEDS, STEPS, (channels, 24, 33), STREAM_SOLVER)
    assert whole.shape == (5, channels, 24, 33)
    assert whole.dtype == torch.float32
    row, column = corner
    part = normal_at(SEEDS, STEPS, (channels, 9, 12), STREAM_SOLVER, corner)
    assert torch.equal(part, whole[:, :, row : row + 9, column : column + 12])


def test_channels_that_two_priors_share_are_the_same():
    few, many = (normal_at(SEEDS, STEPS, (channels, 8, 8), STREAM_SOLVER) for channels in (6, 32))
    assert torch.equal(few, many[:, :6])


def test_an_image_has_its_noise_in_any_batch():
    batch = normal_at(SEEDS, STEPS, (4, 16, 16), STREAM_SOLVER)
    for n in range(5):
        assert torch.equal(normal_at(SEEDS[n : n + 1], STEPS[n : n + 1], (4, 16, 16), STREAM_SOLVER)[0], batch[n])


@pytest.mark.parametrize("at_once", [1, 7, 100, 10**6])
def test_noise_does_not_depend_on_how_much_is_drawn_at_once(at_once: int, monkeypatch: pytest.MonkeyPatch):
    expected = normal_at(SEEDS, STEPS, (6, 9, 14), STREAM_SOLVER)
    monkeypatch.setattr(position_noise, "_AT_ONCE", at_once)
    assert torch.equal(normal_at(SEEDS, STEPS, (6, 9, 14), STREAM_SOLVER), expected)


def test_noise_differs_by_seed_step_stream_and_position():
    one, zero = SEEDS[:1], STEPS[:1]
    draws = [
        normal_at(one, zero, (4, 8, 8), STREAM_SOLVER),
        normal_at(one + 1, zero, (4, 8, 8), STREAM_SOLVER),
        normal_at(one + 2**32, zero, (4, 8, 8), STREAM_SOLVER),
        normal_at(one, zero + 1, (4, 8, 8), STREAM_SOLVER),
        normal_at(one, zero, (4, 8, 8), STREAM_START),
        normal_at(one, zero, (4, 8, 8), STREAM_SOLVER, (8, 0)),
        normal_at(one, zero, (4, 8, 8), STREAM_SOLVER, (0, 8)),
    ]
    for i, draw in enumerate(draws):
        for other in draws[:i]:
            assert (draw == other).sum() == 0


def test_noise_is_standard_normal_and_white():
    values = normal_at(SEEDS, STEPS, (8, 64, 64), STREAM_SOLVER).double()
    flat, count = values.flatten(), values.numel()
    assert abs(flat.mean()) < 4 / math.sqrt(count)
    assert abs(flat.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs(stats.skew(flat.numpy())) < 4 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(flat.numpy())) < 4 * math.sqrt(24 / count)
    assert stats.kstest(flat.numpy(), "norm").pvalue > 1e-3
    for dim in (1, 2, 3):  # neighbours in channel, row and column
        length = values.shape[dim]
        product = values.narrow(dim, 0, length - 1) * values.narrow(dim, 1, length - 1)
        assert abs(product.mean()) < 4.5 / math.sqrt(product.numel())


def philox_in_integers(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x32-10 in Python's integers, which never overflow."""
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@pytest.mark.parametrize(("seed", "step", "row", "column"), [(5, 999, 3, 70_000), (2**62 + 12345, 0, 2**20, 1)])
def test_noise_is_box_muller_of_the_positions_counter(seed: int, step: int, row: int, column: int):
    """The formula in plain Python: words of the counter (row, column, channel block, step and stream)."""
    expected: list[float] = []
    for block in (0, 1):
        counter = [row, column, block, step * 256 + STREAM_SOLVER]
        u = [(word + 0.5) / 2**32 for word in philox_in_integers(counter, [seed % 2**32, seed >> 32])]
        for radius, angle in ((u[0], u[1]), (u[2], u[3])):
            length = math.sqrt(-2 * math.log(radius))
            expected += [length * math.cos(2 * math.pi * angle), length * math.sin(2 * math.pi * angle)]
    found = normal_at(torch.tensor([seed]), torch.tensor([step]), (8, 1, 1), STREAM_SOLVER, (row, column))
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_the_noise_itself_is_what_it_was():
    """Changing these numbers changes every image of every run that is resumed."""
    found = normal_at(torch.tensor([5]), torch.tensor([999]), (5, 1, 2), STREAM_SOLVER, (3, 70_000))
    expected = [-0.5484607, 2.1009216, -2.3645921, 0.6601141, 0.6861439, 1.7406123, 0.0802130, -0.1647481, 0.2925819]
    torch.testing.assert_close(found.flatten()[:9], torch.tensor(expected), rtol=1e-6, atol=1e-6)
