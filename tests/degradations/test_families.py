"""What holds for every family of degradations: batches, seeds, severities, adjoints and gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flashray.degradations import DEGRADATIONS, Degradation, Operator, Parameters, make_degradation
from flashray.degradations.simulate import draw_parameters
from flashray.errors import ConfigError
from tests.support.families import CASES, LINEAR, NONLINEAR, ORDERED, SEVERE, SMOOTH, Case, named
from tests.support.unit_scale import on_unit_scale

SIZE = (24, 32)


def images(n: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """[n, 3, H, W] in [0, 1]."""
    return torch.rand(n, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(family: Degradation, n: int, seed: int = 0) -> Parameters:
    """Parameters of n images in float64."""
    parameters = family.sample_parameters(torch.Generator().manual_seed(seed), n)
    return {name: value.double() for name, value in parameters.items()}


def row(parameters: Parameters, n: int) -> Parameters:
    return {name: value[n : n + 1] for name, value in parameters.items()}


def bound(family: Degradation, n: int, size: tuple[int, int] = SIZE) -> Operator:
    return family.bind(drawn(family, n), size)


def test_every_family_is_here() -> None:
    assert {case.name for case in CASES} == set(DEGRADATIONS) - {
        "kernel_wizard",
        "deepinv",
    }  # these have files, and tests, of their own


@named(CASES)
def test_images_of_one_batch_have_their_own_operator(case: Case) -> None:
    family, x = case.make(), images(3)
    parameters = drawn(family, 3)
    together = family.bind(parameters, SIZE)
    y = on_unit_scale(together, x)
    assert y.shape == (3, 3, *family.measurement_size(SIZE))
    assert family.image_size((y.shape[2], y.shape[3])) == SIZE
    for n in range(3):
        alone = on_unit_scale(family.bind(row(parameters, n), SIZE), x[n : n + 1])
        torch.testing.assert_close(y[n : n + 1], alone, rtol=0, atol=1e-12)
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        torch.testing.assert_close(on_unit_scale(together.select(rows), x[rows]), y[rows], rtol=0, atol=1e-12)
    assert together.pseudo_image(y).shape == together.picture(y).shape == x.shape


@named(SEVERE)
def test_parameters_follow_from_the_seed_and_are_sound(case: Case) -> None:
    family = case.make()
    one, again, other = (draw_parameters(family, seed) for seed in (5, 5, 6))
    assert set(one) == set(family.parameter_names)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    family.check_parameters(drawn(family, 50))
    values = {name: torch.tensor([float(value)]) for name, value in one.items()}  # as they travel through JSON
    x = images(1).float()
    assert torch.equal(family.bind(values, SIZE).A(x), family.bind(one, SIZE).A(x))


@named(ORDERED)
def test_more_severity_is_more_damage(case: Case, photo: Tensor) -> None:
    family = case.make()
    side = 64
    x = (photo[None, :, 100 : 100 + side, 150 : 150 + side].double() + 1) / 2
    level = torch.linspace(0, 1, 5)
    for seed in range(3):
        drawn = family.parameters_at(level, torch.Generator().manual_seed(seed))
        # one operator at several severities
        same = {n: v if n == family.parameter_names[0] else v[:1].expand_as(v) for n, v in drawn.items()}
        operator = family.bind({name: value.double() for name, value in same.items()}, (side, side))
        y = operator.pseudo_image(on_unit_scale(operator, x.expand(5, -1, -1, -1)))
        damage = (y - x).square().flatten(1).mean(dim=1)
        assert (damage.diff() > 0).all(), damage
    assert (drawn[family.parameter_names[0]].diff() != 0).all()


@named(SEVERE)
def test_only_settings_that_leave_nothing_open_fix_the_parameters(case: Case) -> None:
    family = case.make()
    assert family.fixed_parameters() == ({} if family.unknown else None)


@named(LINEAR)
@pytest.mark.parametrize("size", [SIZE, (36, 16)])
def test_adjoint_passes_the_dot_product_test(case: Case, size: tuple[int, int]) -> None:
    family = case.make()
    operator = bound(family, 3, size)
    x = images(3, size) - 0.5
    y = images(3, family.measurement_size(size), seed=1) - 0.5
    forward = (operator.A_linear(x) * y).flatten(1).sum(dim=1)
    adjoint = (x * operator.A_adjoint(y)).flatten(1).sum(dim=1)
    torch.testing.assert_close(forward, adjoint, rtol=1e-10, atol=1e-10)
    assert (forward.abs() > 1e-3).all()


@named(LINEAR)
def test_linear_operators_are_linear(case: Case) -> None:
    operator, a, b = bound(case.make(), 2), images(2), images(2, seed=1)
    torch.testing.assert_close(
        operator.A_linear(2 * a - 3 * b), 2 * operator.A_linear(a) - 3 * operator.A_linear(b), rtol=0, atol=1e-12
    )


@named(SMOOTH)
def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    size = (16, 16)
    operator = bound(case.make(), 1, size)
    x = (images(1, size) * 1.2 - 0.1).requires_grad_()  # decoders overshoot
    assert torch.autograd.gradcheck(partial(on_unit_scale, operator), x, fast_mode=True)


@named(NONLINEAR)
def test_forward_mode_agrees_with_reverse_mode(case: Case) -> None:
    """Gauss-Newton solvers ask for both: ⟨J d, r⟩ = ⟨d, Jᵀ r⟩."""
    operator, x = bound(case.make(), 2), images(2)
    d, r = images(2, seed=1) - 0.5, images(2, seed=2) - 0.5
    _, ahead = torch.func.jvp(partial(on_unit_scale, operator), (x,), (d,))
    _, pull_back = torch.func.vjp(partial(on_unit_scale, operator), x)
    torch.testing.assert_close((ahead * r).sum(), (d * pull_back(r)[0]).sum(), rtol=1e-10, atol=0)


@named(NONLINEAR)
def test_nonlinear_operators_have_no_adjoint(case: Case) -> None:
    operator, x = bound(case.make(), 1), images(1)
    with pytest.raises(TypeError, match="no adjoint"):
        operator.A_adjoint(x)
    assert not torch.allclose(on_unit_scale(operator, x / 2), on_unit_scale(operator, x) / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("random_inpainting", {"missing": [0.5, 1.5]}, "missing"),
        ("random_inpainting", {"missing": 0.5}, "low, high"),
        ("random_inpainting", {"missing": [0.8, 0.2]}, "missing"),
        ("random_inpainting", {"paper": "yes"}, "paper"),
        ("random_inpainting", {"fill": 1}, "fill"),
        ("box_inpainting", {"side": [-1, 3]}, "side"),
        ("motion_blur", {"length": [2, 31]}, "length"),
        ("motion_blur", {"kernel_size": 10}, "kernel_size"),
        ("motion_blur", {"path": "zigzag"}, "path"),
        ("super_resolution", {"scale": 1}, "scale"),
        ("super_resolution", {"scale": 2.5}, "scale"),
        ("jpeg", {"quality": [0, 50]}, "quality"),
        ("jpeg", {"quality": [10, 101]}, "quality"),
        ("jpeg", {"subsampling": 2}, "subsampling"),
        ("nonlinear_blur", {"motion": [-1, 3]}, "motion"),
        ("nonlinear_blur", {"motion": ["a", 3]}, "motion"),
        ("nonlinear_blur", {"highlights": -1}, "highlights"),
        ("nonlinear_blur", {"gamma": 0.5}, "gamma"),
        ("nonlinear_blur", {"frames": 1}, "frames"),
        ("photo", {"damage": [-0.1, 0.5]}, "damage"),
        ("photo", {"damage": [0.5, 0.2]}, "damage"),
        ("photo", {"damage": [0.0, 1.1]}, "damage"),
        ("photo", {"undamaged": 1.5}, "undamaged"),
        ("photo", {"partial": -0.1}, "partial"),
    ],
)
def test_bad_settings_are_config_errors(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*{words}"):
        make_degradation(name, settings)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("random_inpainting", {"missing": 1.5, "mask_seed": 0}),
        ("random_inpainting", {"missing": float("nan"), "mask_seed": 0}),
        ("random_inpainting", {"missing": 0.5, "mask_seed": 0.5}),
        ("random_inpainting", {"missing": 0.5, "mask_seed": 2**24}),
        ("box_inpainting", {"box_side": -1, "box_seed": 0}),
        ("motion_blur", {"motion_length": 31, "motion_angle": 0, "motion_seed": 0}),
        ("motion_blur", {"motion_length": 3, "motion_angle": float("inf"), "motion_seed": 0}),
        ("jpeg", {"quality": 0}),
        ("nonlinear_blur", {"motion": -1.0, "motion_seed": 0}),
        ("nonlinear_blur", {"motion": 1.0, "motion_seed": -1}),
        ("photo", {"damage": 1.1, "damage_seed": 0}),
        ("photo", {"damage": float("nan"), "damage_seed": 0}),
        ("photo", {"damage": 0.5, "damage_seed": 0.5}),
        ("photo", {"damage": 0.5, "damage_seed": 2**24}),
    ],
)
def test_parameters_out_of_range_are_config_errors(name: str, parameters: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=name):
        make_degradation(name).check_parameters({k: torch.tensor([float(v)]) for k, v in parameters.items()})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("nonlinear_blur", {"motion": [0, 20]}),
        ("motion_blur", {"kernel_size": 31}),
        ("box_inpainting", {"side": [8, 25]}),
        ("super_resolution", {"scale": 16}),
    ],
)
def test_what_does_not_fit_the_image_is_a_config_error(name: str, settings: dict[str, Any]) -> None:
    family = make_degradation(name, settings)
    family.check_size((128, 128))
    with pytest.raises(ConfigError, match=f"{name}.*32 x 24"):
        family.check_size((24, 32))
