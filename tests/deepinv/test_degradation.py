"""A Physics of deepinv as a degradation: range, adjoint, sizes, parameters, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from deepinv import physics as P
from torch import Tensor

from flashray.degradations import make_degradation
from flashray.degradations.base import AffineOperator
from flashray.errors import ConfigError, ImageError
from flashray.recipe import DegradationConfig, Recipe, SolverConfig
from flashray.solvers.proximal import linearise
from flashray.training.train_severity import parameter_ranges
from flashray.yaml_text import read_yaml
from tests.support.physics import BROKEN, LINEAR, SIDE, Squares, inpainting, mask

SIZE = (SIDE, SIDE)
each_linear = pytest.mark.parametrize("make", LINEAR.values(), ids=LINEAR)


def family_of(physics: Any, **settings: Any) -> Any:
    return make_degradation("deepinv", {"physics": physics, **settings})


def images(n: int, seed: int = 0) -> Tensor:
    """[n, 3, SIDE, SIDE] in [0, 1]."""
    return torch.rand(n, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def kernel(seed: int) -> Tensor:
    """[1, 1, 5, 5], sums to 1."""
    return torch.rand(1, 1, 25, generator=torch.Generator().manual_seed(seed)).softmax(dim=2).view(1, 1, 5, 5)


@each_linear
def test_the_range_is_changed_once(make: Callable[[], Any]) -> None:
    physics, x = make(), images(2)
    operator = family_of(physics, size=SIZE).bind({}, SIZE)
    torch.testing.assert_close(operator.A(2 * x - 1), 2 * physics.A(x) - 1)
    torch.testing.assert_close(operator.A_linear(x), physics.A(x))


@each_linear
def test_the_dot_test_holds_on_differences(make: Callable[[], Any]) -> None:
    family = family_of(make(), size=SIZE)
    operator = family.bind({}, SIZE)
    assert isinstance(operator, AffineOperator)
    x, other = 2 * images(2) - 1, 2 * images(2, seed=1) - 1
    change = operator.A(x) - operator.A(other)
    v = torch.randn(change.shape, generator=torch.Generator().manual_seed(2))
    forward = (change * v).flatten(1).sum(dim=1)
    adjoint = ((x - other) * operator.A_adjoint(v)).flatten(1).sum(dim=1)
    torch.testing.assert_close(forward, adjoint, rtol=1e-4, atol=1e-2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((operator.A(x) * v).sum(), x)
    torch.testing.assert_close(gradient, operator.A_adjoint(v))


@each_linear
def test_sizes_and_pictures(make: Callable[[], Any], photo: Tensor) -> None:
    family = family_of(make(), size=SIZE)
    family.check_size(SIZE)
    x = photo[None, :, 40 : 40 + SIDE, 200 : 200 + SIDE]
    operator = family.bind({}, SIZE)
    y = operator.A(x)
    assert family.measurement_size(SIZE) == tuple(y.shape[2:])
    assert family.image_size(family.measurement_size(SIZE)) == SIZE
    assert operator.picture(y).shape == operator.pseudo_image(y).shape == x.shape


@pytest.mark.parametrize("name", set(LINEAR) - {"decolorize"})
def test_pseudo_images_lie_where_the_images_do(name: str, photo: Tensor) -> None:
    """Moved by a pixel, the picture fits the image worse: severity encoders see every measurement at its place."""
    x = torch.nn.functional.avg_pool2d(photo, 4)[None, :, 20 : 20 + SIDE, 20 : 20 + SIDE]
    operator = family_of(LINEAR[name](), size=SIZE).bind({}, SIZE)
    seen = operator.pseudo_image(operator.A(x))

    def error(rows: int, columns: int) -> float:
        moved = torch.roll(seen, (rows, columns), dims=(2, 3))
        return (moved - x)[..., 8:-8, 8:-8].square().mean().item()

    here = error(0, 0)
    assert here < 0.05
    assert all(here < error(*shift) for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)))


def test_missing_pixels_are_black_in_pictures_and_filled_for_encoders() -> None:
    x = torch.full((1, 3, *SIZE), 0.5)
    operator = family_of(inpainting()).bind({}, SIZE)
    y = operator.A(x)
    assert torch.equal(operator.picture(y), torch.where(mask() > 0, x, -1.0))
    torch.testing.assert_close(operator.pseudo_image(y), x)


@pytest.mark.parametrize(
    ("words", "object_"),
    [
        ("{physics: Denoising}", P.Denoising),
        ("{physics: {Downsampling: {filter: bicubic, factor: 4}}}", LINEAR["downsampling, bicubic"]),
        ("{physics: {Blur: {filter: {gaussian_blur: {sigma: [1.5, 1.5]}}, padding: circular}}}", LINEAR["blur"]),
        (
            "{physics: {Blur: {filter: [[0, 0.1, 0], [0.2, 0.5, 0.2], [0, 0, 0]], padding: reflect}}}",
            lambda: P.Blur(
                torch.tensor([[[[0, 0.1, 0], [0.2, 0.5, 0.2], [0, 0, 0]]]], dtype=torch.float32), padding="reflect"
            ),
        ),
        ("{physics: {Demosaicing: {img_size: [64, 64]}}, size: [64, 64]}", LINEAR["demosaicing"]),
    ],
)
def test_a_physics_by_name_is_the_object(words: str, object_: Callable[[], Any]) -> None:
    config = DegradationConfig("deepinv", dict(read_yaml(words.encode(), "test")))
    x = images(1)
    named = Recipe(config, solver=SolverConfig("proximal", 20)).check().degradation.make().bind({}, SIZE)
    assert torch.equal(named.A_linear(x), object_().A(x))


def test_what_a_physics_draws_is_the_same_in_every_process() -> None:
    words = {"Inpainting": {"img_size": [3, SIDE, SIDE], "mask": 0.5}}
    state = torch.random.get_rng_state()
    one, other = (family_of(words).made.mask for _ in "ab")
    assert torch.equal(one, other)
    assert 0.4 < one.mean() < 0.6
    assert torch.equal(state, torch.random.get_rng_state())


def test_each_image_has_its_own_parameters() -> None:
    family = family_of(P.Blur(kernel(1), padding="circular"))
    kernels = [kernel(seed)[0] for seed in (2, 3)]
    assert family.parameter_names == ("filter",)
    parameters = {"filter": torch.stack(kernels)}
    family.check_parameters(parameters)
    together, x = family.bind(parameters, SIZE), images(2)
    y = together.A(x)
    for n, own in enumerate(kernels):
        torch.testing.assert_close(y[n : n + 1], family.bind({"filter": own[None]}, SIZE).A(x[n : n + 1]))
        torch.testing.assert_close(y[n : n + 1], together.select(torch.tensor([n])).A(x[n : n + 1]))
    assert not torch.allclose(y[1], family.bind({}, SIZE).A(x)[1])  # and the family keeps its own


def test_a_severity_encoder_predicts_no_tensors() -> None:
    family = family_of(inpainting())
    assert family.parameter_names == ("mask",)
    assert parameter_ranges(family, (0.01, 0.1)) == {"noise_std": [0.01, 0.1]}


def test_a_given_object_stays_as_it_is() -> None:
    physics = LINEAR["blur"]()
    before = physics.filter.clone()
    family = family_of(physics)
    physics.filter.zero_()
    assert torch.equal(family.made.filter, before)
    family.bind({"filter": 2 * before}, SIZE).A(images(1))
    assert torch.equal(physics.filter, torch.zeros_like(before))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"filtr": torch.ones(1, 1, 9, 9)}, r"no parameter filtr \(did you mean filter\?\); give one of: filter"),
        ({"sigma": torch.ones(1)}, "no parameter sigma"),
        (
            {"filter": torch.ones(1, 9, 9)},
            r"takes filter as finite numbers \[1, 9, 9\] an image; give such, not \[9, 9\]",
        ),
        ({"filter": torch.ones(1, 1, 5, 9)}, r"not \[1, 5, 9\]"),
        ({"filter": torch.full((1, 1, 9, 9), torch.nan)}, "finite"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Tensor], words: str) -> None:
    family = family_of(P.Blur(torch.ones(1, 1, 9, 9) / 81, padding="circular"))
    with pytest.raises(ConfigError, match=words):
        family.check_parameters(parameters)


def test_a_nonlinear_physics_has_its_own_derivative() -> None:
    family = family_of(Squares())
    assert not family.linear
    assert family.parameter_names == ("strength",)
    operator, x = family.bind({}, SIZE), 2 * images(1).double() - 1
    d, v = images(1, seed=1).double() - 0.5, images(1, seed=2).double() - 0.5
    before = family.made.asked
    _, ahead, back = linearise(operator, x)
    torch.testing.assert_close((ahead(d) * v).sum(), (d * back(v)).sum())
    torch.testing.assert_close(ahead(d), (operator.A(x + 1e-5 * d) - operator.A(x - 1e-5 * d)) / 2e-5)
    assert family.made.asked > before
    assert torch.autograd.gradcheck(partial(operator.A), x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", BROKEN)
def test_a_physics_that_no_solver_can_use_is_named_before_any_work(name: str) -> None:
    make, words = BROKEN[name]
    with pytest.raises(ConfigError, match=words):
        Recipe(DegradationConfig("deepinv", {"physics": make()})).check()


@pytest.mark.parametrize(
    ("physics", "words"),
    [
        ("Blurr", r"'Blurr' is no class of deepinv.physics \(did you mean Blur"),
        ("GaussianNoise", "no class of deepinv.physics"),
        ({"Blur": {"fliter": 1}}, "physics Blur refuses .*'fliter'.* are ignored.; give other arguments"),
        ({"Downsampling": {"factor": 2, "filter": {"no_such": {}}}}, "physics Downsampling refuses .*no_such"),
        ({"Blur": {}, "Inpainting": {}}, "give the name of a class"),
        (3, "physics: 3 is none; give the name"),
    ],
)
def test_words_that_name_no_physics_are_config_errors(physics: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        family_of(physics)


def test_a_physics_of_one_size_refuses_others() -> None:
    family = family_of(inpainting())
    assert family.fixed_size == SIZE
    with pytest.raises(ConfigError, match="is for images of 64 x 64, not 70 x 60; give such"):
        family.check_size((60, 70))
    with pytest.raises(ImageError, match="the measurement has 70 x 60 pixels, not 64 x 64"):
        family.image_size((60, 70))
    with pytest.raises(ConfigError, match="is for images of 68 x 64, not 65 x 64"):
        family_of(LINEAR["downsampling, bicubic"]()).check_size((64, 65))


def test_measurements_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"are \[1, 64, 64\] of an image, not \[3, 64, 64\]"):
        family_of(P.Decolorize()).bind({}, SIZE).picture(images(1))
