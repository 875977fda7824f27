"""Photos with a sharp subject before a blurred background."""

from __future__ import annotations

import pytest
import torch

from benchmarks.partly_sharp import line, partly_sharp, subject


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


def test_a_line_says_what_is_saved():
    said = line("photo", [(1.0, 2.0, 30.0, 0.1), (2.0, 2.0, 30.0, 0.1)], [(4.0, 4.0, 29.0, 0.2), (4.0, 4.0, 29.0, 0.2)])
    assert "| 4.00 → 1.50, 62% saved" in said
    assert "| 4.00 → 2.00, 50% saved" in said
    assert "29.00 → 30.00, +1.00" in said
    assert "0.2000 → 0.1000, -0.1000" in said
