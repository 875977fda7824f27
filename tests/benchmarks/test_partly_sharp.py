"""Photos with a sharp subject before a blurred background."""

from __future__ import annotations

import pytest
import torch

from benchmarks.partly_sharp import partly_sharp, saved, subject, table


def test_the_subject_is_sharp_and_the_background_is_not():
    noise = torch.rand(3, 160, 200, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for seed in range(4):
        mask, mixed = subject(160, 200, seed)[0], partly_sharp(noise, 0.0, seed)
        assert 0.08 < mask.mean() < 0.35
        assert (mixed - noise)[:, mask == 1].abs().max() <= 1 / 255 + 1e-6
        assert mixed[:, mask == 0].std() < 0.3 * noise.std()
        noisy = partly_sharp(noise, 0.1, seed)
        assert torch.equal(noisy[:, mask == 1], mixed[:, mask == 1])
        assert (noisy - mixed)[:, mask == 0].std() == pytest.approx(0.2, abs=0.04)


def test_what_is_saved_is_read_off_between_the_two_starts_of_equal_lpips():
    one = [(0.0, 1.0, 30.0, 0.4), (2.0, 3.0, 30.0, 0.2), (4.0, 5.0, 30.0, 0.25)]
    assert saved((0.5, 1.0, 30.0, 0.3), one) == pytest.approx((0.5, 0.5))  # halfway: 1 evaluation, 2 seconds
    assert saved((2.0, 3.0, 30.0, 0.2), one) == pytest.approx((0.0, 0.0))
    assert saved((1.0, 1.0, 30.0, 0.5), one) is saved((1.0, 1.0, 30.0, 0.1), one) is None


def test_a_table_has_the_starts_of_windows_and_then_those_of_whole_photos():
    photo = [(0.5, 1.0, 30.0, 0.3), (0.0, 1.0, 30.0, 0.4), (2.0, 3.0, 29.0, 0.2)]
    windows, first, last = table("photo", [1.0], [1.0, 2.0], [photo, photo]).splitlines()
    assert windows == "| photo | windows, 1 σ̂ | 0.50 | 1.000 | 30.00 | 0.3000 | 50% (50% … 50%) | 50% (50% … 50%) |"
    assert first.endswith("| 0.4000 |  |  |")
    assert last.startswith("| photo | one, 2 σ̂ | 2.00 | 3.000 | 29.00 |")
