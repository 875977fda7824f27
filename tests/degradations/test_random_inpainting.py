from __future__ import annotations

import pytest
import torch

from flashray.degradations import make_degradation
from flashray.degradations.masking import fill_in
from flashray.degradations.random_inpainting import random_mask
from flashray.errors import ConfigError
from tests.support.golden import golden

SIZE = (24, 32)


def test_the_share_is_exact_and_the_pixels_are_scattered():
    missing = torch.tensor([0.0, 0.1, 0.5, 0.8, 1.0])
    mask = random_mask(missing, torch.arange(5.0), (64, 64))
    assert mask.unique().tolist() == [0, 1]
    assert ((1 - mask).flatten(1).sum(dim=1) == (missing * 64 * 64).round()).all()
    # the number in each 16×16 block is hypergeometric: five deviations bound all 16 blocks
    blocks = (1 - mask[2]).unfold(1, 16, 16).unfold(2, 16, 16).sum(dim=(-1, -2))
    assert (blocks - 128).abs().max() < 5 * (256 * 0.25) ** 0.5


def test_masks_of_one_seed_are_nested_and_of_two_are_not():
    missing = torch.linspace(0, 1, 6)
    mask = random_mask(missing, torch.zeros(6), SIZE)
    assert (mask.diff(dim=0) <= 0).all()
    a, b = random_mask(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), SIZE)
    agreement = (a == b).float().mean()
    assert 0.4 < agreement < 0.6


def test_a_mask_is_the_same_in_every_run():
    mask = random_mask(torch.tensor([0.5]), torch.tensor([7.0]), (2, 6))
    assert mask.flatten().int().tolist() == [int(c) for c in "011101010001"]  # runs that are resumed rely on it


def test_the_papers_masks_are_one():
    paper = make_degradation("random_inpainting", {"missing": [0.7, 0.8], "paper": True})
    parameters = paper.sample_parameters(torch.Generator().manual_seed(3), 20)
    assert (parameters["mask_seed"] == 0).all()
    assert parameters["missing"].min() >= 0.7
    fixed = make_degradation("random_inpainting", {"missing": [0.7, 0.7], "paper": True}).fixed_parameters()
    assert fixed is not None
    assert fixed["mask_seed"].item() == 0
    # without it a share alone tells no mask
    assert make_degradation("random_inpainting", {"missing": [0.7, 0.7]}).fixed_parameters() is None


def test_given_masks_agree_with_the_reference():
    family = make_degradation("random_inpainting")
    operator = family.bind({"mask": golden("inpainting/mask")}, (32, 32))
    torch.testing.assert_close(operator.A_linear(golden("clean")), golden("inpainting/forward"), atol=1e-6, rtol=0)
    torch.testing.assert_close(operator.A_adjoint(golden("clean")), golden("inpainting/adjoint"), atol=1e-6, rtol=0)
    lost = golden("inpainting/mask").expand(-1, 3, -1, -1) == 0
    assert (operator.A(golden("clean"))[lost] == -1).all()


def test_a_mask_of_another_size_is_named():
    with pytest.raises(ConfigError, match=r"16 x 8 pixels.* 32 x 24"):
        make_degradation("random_inpainting").bind({"mask": torch.ones(1, 1, 8, 16)}, SIZE)


def test_what_a_file_holds_in_its_holes_is_forgotten():
    family = make_degradation("random_inpainting")
    operator = family.bind({"missing": torch.tensor([0.5]), "mask_seed": torch.tensor([1.0])}, SIZE)
    y, nothing = torch.rand(1, 3, *SIZE), torch.full((1, 3, *SIZE), -1.0)
    blanked = operator.blank(y, nothing)
    torch.testing.assert_close(blanked, operator.A(blanked))
    known = operator.mask_B1HW.expand_as(y) == 1
    assert torch.equal(blanked[known], y[known])


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_filled_holes_resemble_the_image(photo: torch.Tensor, share: float):
    x = photo[None, :, 100:164, 150:214]
    parameters = {"missing": torch.tensor([share]), "mask_seed": torch.tensor([1.0])}
    filled, plain = (
        make_degradation("random_inpainting", {"fill": fill}).bind(parameters, (64, 64)) for fill in (True, False)
    )
    y = filled.A(x)
    assert torch.equal(plain.pseudo_image(y), y)
    assert torch.equal(filled.picture(y), y)
    seen = filled.pseudo_image(y)
    known = filled.mask_B1HW.expand_as(y) == 1
    assert torch.equal(seen[known], y[known])
    error, black = ((one - x)[~known].square().mean() for one in (seen, y))
    assert error < 0.25 * black
    # whatever was in the holes
    other = torch.where(known, y, torch.rand_like(y))
    torch.testing.assert_close(filled.pseudo_image(other), seen)


def test_wide_holes_are_filled_from_their_border_and_nothing_from_nothing():
    hole = torch.ones(1, 1, 64, 64)
    hole[..., 8:56, 8:56] = 0
    y = torch.full((1, 3, 64, 64), 0.3)
    torch.testing.assert_close(fill_in(torch.where(hole > 0, y, -1), hole), y)
    assert torch.isfinite(fill_in(y, torch.zeros_like(hole))).all()
