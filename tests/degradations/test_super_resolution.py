from __future__ import annotations

import torch

from flashray.degradations import make_degradation


def test_each_pixel_is_the_mean_of_its_area():
    x = torch.arange(3 * 8 * 12.0).reshape(1, 3, 8, 12)
    for scale in (2, 4):
        family = make_degradation("super_resolution", {"scale": scale})
        operator = family.bind({}, (8, 12))
        y = operator.A_linear(x)
        assert y.shape == (1, 3, *family.measurement_size((8, 12)))
        assert y[0, 1, 1, 2] == x[0, 1, scale : 2 * scale, 2 * scale : 3 * scale].mean()
        torch.testing.assert_close(operator.A_linear(operator.A_adjoint(y)) * scale**2, y)
        assert family.fixed_parameters() == {}


def test_the_pseudo_image_is_a_plausible_enlargement(photo: torch.Tensor):
    x = photo[None, :, 100:164, 150:214]
    operator = make_degradation("super_resolution", {"scale": 2}).bind({}, (64, 64))
    large = operator.pseudo_image(operator.A(x))
    nearest = operator.A_adjoint(operator.A(x)) * 4
    assert large.shape == x.shape
    assert (large - x).square().mean() < (nearest - x).square().mean()
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(operator.pseudo_image(flat), torch.full((1, 3, 16, 16), 0.3))
