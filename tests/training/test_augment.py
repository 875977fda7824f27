"""Varied views are still their photos: same detail, other places, colours and strengths."""

import pytest
import torch

from flashray.training.photo_windows import GAIN, SHIFT, vary


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=generator(1)) * 0.4 - 0.2  # too faint to clip


def test_only_a_share_is_varied():
    x = images(400)
    assert torch.equal(vary(x, 0.0, generator()), x)
    same = (vary(x, 0.25, generator()) == x).flatten(1).all(dim=1).float().mean()
    assert 0.68 < same < 0.82


def test_it_depends_on_the_generator_alone():
    x = images(4)
    assert torch.equal(vary(x, 1.0, generator()), vary(x, 1.0, generator()))
    assert not torch.equal(vary(x, 1.0, generator()), vary(x, 1.0, generator(2)))


def test_each_is_an_affine_function_of_its_pixels_moved_about():
    x = images(200)
    varied = vary(x, 1.0, generator())
    gain = varied.std(dim=(1, 2, 3)) / x.std(dim=(1, 2, 3))
    shift = varied.mean(dim=(1, 2, 3)) - x.mean(dim=(1, 2, 3))
    assert 1 / GAIN <= gain.min() < 0.7
    assert 1.4 < gain.max() <= GAIN * (1 + 1e-5)
    assert -SHIFT <= shift.min() < -0.2
    assert 0.2 < shift.max() <= SHIFT
    mean = x.mean(dim=(1, 2, 3))[:, None]
    expected = mean + shift[:, None] + gain[:, None] * (x.flatten(1).sort(dim=1).values - mean)
    torch.testing.assert_close(varied.flatten(1).sort(dim=1).values, expected, rtol=0, atol=1e-5)


def test_all_turns_and_channel_orders_appear():
    x = torch.zeros(300, 3, 8, 8)
    x[:, 0, 0, 0] = 1  # one bright red corner
    brightest = vary(x, 1.0, generator()).flatten(1).argmax(dim=1)
    assert sorted(set(brightest.tolist())) == [c * 64 + corner for c in range(3) for corner in (0, 7, 56, 63)]


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_it_stays_in_range(value: float):
    assert vary(torch.full((50, 3, 8, 8), value), 1.0, generator()).abs().max() <= 1
