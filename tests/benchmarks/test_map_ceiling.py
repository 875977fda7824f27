"""The ceiling of a severity map's order."""

from __future__ import annotations

import torch

from benchmarks.map_ceiling import chance, correlations


def exact_map() -> tuple[torch.Tensor, torch.Tensor]:
    """A variance that rises over the rows, and errors of eight channels that have it."""
    generator = torch.Generator().manual_seed(0)
    variance = torch.linspace(0.2, 1.0, 32)[:, None].expand(32, 32).square()
    return variance, torch.randn(8, 32, 32, generator=generator) * variance.sqrt()


def test_a_map_that_is_right_reaches_the_ceiling():
    single, ceiling, block, block_ceiling = correlations(*exact_map(), torch.Generator().manual_seed(1)).tolist()
    assert abs(single - ceiling) < 0.02
    assert abs(block - block_ceiling) < 0.02
    assert ceiling < block_ceiling  # means of more draws know their variance better


def test_a_map_that_says_nothing_is_far_below_it():
    variance, error = exact_map()
    single, ceiling, *_ = correlations(variance, error.flip(1), torch.Generator().manual_seed(1)).tolist()
    assert single < -0.5 < 0.2 < ceiling


def test_chance_keeps_the_scale_of_the_errors():
    variance, error = exact_map()
    drawn = chance(variance, error, torch.Generator().manual_seed(1))
    assert abs(drawn.mean() / variance.mean() - 1) < 0.05
