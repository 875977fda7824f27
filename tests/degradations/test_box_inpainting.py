from __future__ import annotations

import torch

from flashray.degradations.box_inpainting import box_mask

SIZE = (24, 32)


def test_the_hole_is_one_square_inside_the_image():
    side = torch.tensor([0.0, 1.0, 5.4, 24.0, 60.0])
    mask = box_mask(side, torch.arange(5.0), SIZE)
    for lost, n, expected in zip(1 - mask[:, 0], range(5), [(0, 0), (1, 1), (5, 5), (24, 24), (24, 32)], strict=True):
        rows, columns = lost.any(dim=1).nonzero().flatten(), lost.any(dim=0).nonzero().flatten()
        assert (len(rows), len(columns)) == expected, n
        assert lost.sum() == expected[0] * expected[1]
        if len(rows):
            assert rows[-1] - rows[0] + 1 == len(rows)
            assert columns[-1] - columns[0] + 1 == len(columns)


def test_holes_of_one_seed_are_nested():
    for seed in range(20):
        mask = box_mask(torch.arange(24.0), torch.full((24,), float(seed)), SIZE)
        assert (mask.diff(dim=0) <= 0).all()


def test_holes_are_everywhere():
    mask = box_mask(torch.full((400,), 8.0), torch.arange(400.0), SIZE)
    lost = (1 - mask).mean(dim=0)[0]
    assert (lost[8:-8, 8:-8] > 0.05).all()
    tops = (1 - mask[:, 0]).any(dim=2).float().argmax(dim=1)
    assert set(tops.tolist()) == set(range(SIZE[0] - 8))
