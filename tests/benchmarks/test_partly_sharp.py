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


def test_a_line_says_what_the_starts_of_windows_change():
    regions = [(1.0, 2.0, 30.0, 0.1), (2.0, 2.0, 30.0, 0.1)]
    one = [(4.0, 4.0, 29.0, 0.2), (4.0, 4.0, 29.0, 0.2)]
    said = line("photo", "one, 1 σ̂", one, regions)
    assert said.startswith("| photo | one, 1 σ̂ | 4.00 | 4.00 | 29.00 | 0.2000 | 62% | 50% | +1.00 (")
    assert "| -0.1000 (" in said
    assert line("photo", "each window", regions, regions).endswith("| 1.50 | 2.00 | 30.00 | 0.1000 | | | | |")
