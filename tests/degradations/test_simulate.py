from __future__ import annotations

import pytest
import torch

from flashray.degradations import Operator, make_degradation
from flashray.degradations.simulate import add_noise, draw_parameters
from flashray.seeding import STREAM_SOLVER, image_seed, normal

BLUR = make_degradation("gaussian_blur")


def test_noise_std_is_stated_on_the_unit_scale():
    noise_std = torch.tensor([0.0, 0.05, 0.2])
    y = torch.zeros(3, 3, 128, 128)
    noisy = add_noise(y, noise_std, torch.arange(3))
    on_unit_scale = ((noisy + 1) / 2).flatten(1)
    torch.testing.assert_close(on_unit_scale.std(dim=1), noise_std, rtol=0.02, atol=0)
    assert torch.equal(noisy[0], y[0])
    assert (on_unit_scale.mean(dim=1) - 0.5).abs().max() < 4 * 0.2 / 128


def test_noise_depends_on_the_image_alone():
    seeds = torch.tensor([image_seed(0, key) for key in "abcd"])
    y, std = torch.rand(4, 3, 20, 30), torch.tensor([0.05, 0.1, 0.2, 0.3])
    batch = add_noise(y, std, seeds)
    for n in range(4):
        assert torch.equal(add_noise(y[n : n + 1], std[n : n + 1], seeds[n : n + 1])[0], batch[n])
    same = add_noise(torch.zeros(2, 3, 8, 8), torch.ones(2), torch.tensor([5, 5]))
    assert torch.equal(same[0], same[1])


def test_measurement_noise_is_not_the_solvers():
    noise = add_noise(torch.zeros(1, 3, 8, 8), torch.tensor([0.5]), torch.tensor([5]))
    solver = normal(torch.tensor([5]), torch.tensor([0]), (3, 8, 8), STREAM_SOLVER)
    assert (noise == solver).sum() == 0


def test_parameters_of_an_image_are_a_function_of_its_seed():
    seeds = [image_seed(0, f"{i}.png") for i in range(200)]
    draws = torch.cat([draw_parameters(BLUR, seed)["blur_std"] for seed in seeds])
    assert torch.equal(draws, torch.cat([draw_parameters(BLUR, seed)["blur_std"] for seed in seeds]))
    assert len(draws.unique()) == 200
    assert abs(draws.mean() - 1.65) < 4 * 2.7 / 12**0.5 / 200**0.5
    expected = torch.tensor([1.0954, 1.8681])
    torch.testing.assert_close(draws[:2], expected, rtol=1e-3, atol=0)  # runs that are resumed rely on it


def test_simulation_is_deterministic_and_batch_independent():
    x = torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seeds = [image_seed(0, f"{i}.png") for i in range(5)]
    rows = [draw_parameters(BLUR, seed) for seed in seeds]
    parameters = {"blur_std": torch.cat([row["blur_std"] for row in rows])}
    std, seed_B = torch.full((5,), 0.05), torch.tensor(seeds)
    clean = BLUR.bind(parameters, (24, 24)).A(x)
    batch = add_noise(clean, std, seed_B)
    assert torch.equal(batch, add_noise(BLUR.bind(parameters, (24, 24)).A(x), std, seed_B))
    for n in range(5):
        one = slice(n, n + 1)
        alone = add_noise(BLUR.bind(rows[n], (24, 24)).A(x[one]), std[:1], seed_B[one])
        torch.testing.assert_close(alone[0], batch[n], rtol=0, atol=1e-6)
    torch.testing.assert_close((batch - clean).std() / 2, torch.tensor(0.05), rtol=0.05, atol=0)


def test_an_operator_without_adjoint_says_so():
    class Gamma(Operator):
        def A(self, x_BCHW: torch.Tensor) -> torch.Tensor:
            return x_BCHW**2

    with pytest.raises(TypeError, match="Gamma is nonlinear"):
        Gamma().A_adjoint(torch.zeros(1, 3, 4, 4))
