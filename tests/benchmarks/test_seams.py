from __future__ import annotations

import pytest
import torch

from benchmarks.seams import seam_ratio, window_borders

ROWS, COLUMNS = window_borders([0, 12, 20], 16, 8), window_borders([0, 12, 24, 32], 16, 8)


def photo() -> torch.Tensor:
    """Smooth noise of 288 x 384 pixels."""
    coarse = torch.rand(1, 3, 36, 48, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(288, 384), mode="bicubic")[0]


def test_borders_are_where_windows_begin_and_end():
    assert ROWS == [0, 96, 128, 160, 224, 288]


def test_an_image_without_seams_has_a_ratio_near_one():
    assert seam_ratio(photo(), (ROWS, COLUMNS), 48) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("step", [0.03, 0.1])
def test_steps_at_the_borders_show(step: float):
    image = photo()
    for row in ROWS[1:-1]:
        image[:, row:] += step
    for column in COLUMNS[1:-1]:
        image[:, :, column:] += step
    assert seam_ratio(image, (ROWS, COLUMNS), 48) > seam_ratio(photo(), (ROWS, COLUMNS), 48) + step


def test_a_grid_of_the_decoders_own_divides_out():
    image = photo()
    image[:, ::8] += 0.2
    image[:, :, ::8] += 0.2
    assert seam_ratio(image, (ROWS, COLUMNS), 48) == pytest.approx(1, abs=0.03)
