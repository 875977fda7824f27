"""The proximal solver against closed forms: its linear system, its Gauss-Newton steps, and a whole step."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flashray.degradations import make_degradation
from flashray.degradations.base import Operator
from flashray.errors import ConfigError
from flashray.solvers import Problem, Step, make_solver
from flashray.solvers.proximal import Proximal, conjugate_gradients
from flashray.solvers.solver import per_image

SIDE = 12


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def identity(x: Tensor) -> Tensor:
    return x


def problem(operator: Operator, x: Tensor) -> Problem:
    y = operator.A(x) + 0.1 * images(len(x), 9)
    return Problem(y, operator, torch.full((len(x),), 0.05, dtype=torch.float64), identity, identity)


def blur(count: int) -> Operator:
    return make_degradation("gaussian_blur").bind({"blur_std": torch.linspace(0.4, 2, count).double()}, (SIDE, SIDE))


@dataclass(frozen=True)
class Squares(Operator):
    """A(u) = g (u + u²/2) of each pixel u in [0, 1], a gain g an image: nonlinear and without an adjoint."""

    gain_B: Tensor

    def A(self, x_BCHW: Tensor) -> Tensor:
        unit = (x_BCHW + 1) / 2
        return 2 * per_image(self.gain_B) * (unit + unit.square() / 2) - 1


def weights(rho: float, count: int) -> Tensor:
    return torch.full((count, 1, 1, 1), rho, dtype=torch.float64)


def stationary(rho: float, task: Problem, x0: Tensor, x: Tensor) -> Tensor:
    """The gradient of ½‖y - A(x)‖² + ½ρ‖x - x̂0‖² at x."""
    x = x.detach().requires_grad_(True)
    objective = (task.y_BCHW - task.operator.A(x)).square().sum() + rho * (x - x0).square().sum()
    return torch.autograd.grad(objective / 2, x)[0]


@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
def test_a_linear_problem_is_solved_exactly(rho: float):
    task, x0 = problem(blur(3), images(3)), images(3, 1)
    x = Proximal(iterations=60).agree(x0, task, weights(rho, 3))
    assert stationary(rho, task, x0, x).abs().max() < 1e-3
    assert stationary(rho, task, x0, x0).abs().max() > 0.1


def test_a_nonlinear_problem_is_solved_by_gauss_newton_steps():
    task, x0 = problem(Squares(torch.tensor([0.5, 1.0, 1.5]).double()), images(3)), images(3, 1)
    once, often = (Proximal(iterations=50, linearisations=n).agree(x0, task, weights(0.3, 3)) for n in (1, 6))
    gradients = [stationary(0.3, task, x0, x).abs().max() for x in (once, often)]
    assert gradients[1] < 1e-3
    assert gradients[1] < 0.1 * gradients[0]


def test_conjugate_gradients_stop_image_by_image():
    # the second system needs one step, the first one many; neither is disturbed by the other
    diagonal = torch.stack([torch.linspace(1, 50, 3 * SIDE**2), torch.full((3 * SIDE**2,), 2.0)]).double()
    diagonal = diagonal.reshape(2, 3, SIDE, SIDE)
    target = images(2)
    both = conjugate_gradients(lambda d: diagonal * d, target, 200, tolerance=1e-10)
    torch.testing.assert_close(both, target / diagonal, rtol=1e-8, atol=1e-9)
    zero = conjugate_gradients(lambda d: diagonal * d, torch.zeros_like(target), 5)
    assert torch.equal(zero, torch.zeros_like(target))


def step(x0: Tensor, eta: float) -> Step:
    count = len(x0)
    noise = images(count, 5)
    alpha, previous = torch.full((count,), 0.6).double(), torch.full((count,), 0.8).double()
    epsilon = images(count, 6)
    z = per_image(alpha).sqrt() * x0 + per_image(1 - alpha).sqrt() * epsilon
    index = torch.arange(count)
    return Step(z, x0, epsilon, alpha, previous, index, index, lambda stream: noise, eta)


@pytest.mark.parametrize("anneal", [0.0, 1.0])
def test_without_noise_the_next_latent_lies_between_the_corrected_estimate_and_the_direction_to_it(anneal: float):
    x0, solver = images(3, 1), Proximal(rho=50.0, anneal=anneal)
    task, now = problem(blur(3), images(3)), step(x0, eta=0.0)
    # the noise's variance on [-1, 1] is 0.01, and ᾱ/(1-ᾱ) is 1.5
    corrected = solver.agree(x0, task, weights(0.5 * 1.5**anneal, 3))
    epsilon = (now.z_BCHW - 0.6**0.5 * corrected) / 0.4**0.5
    torch.testing.assert_close(solver(now, task), 0.8**0.5 * corrected + 0.2**0.5 * epsilon)


def test_no_image_sees_its_neighbours():
    x0, solver = images(4, 1), make_solver("proximal", {"rho": 20.0})
    task = problem(blur(4), images(4))
    together = solver(step(x0, eta=1.0), task)
    for n in range(4):
        row = torch.tensor([n])
        now = step(x0, eta=1.0)
        alone = Step(
            *(v[row] if isinstance(v, Tensor) else v for v in (now.z_BCHW, now.z0_BCHW, now.epsilon_BCHW)),
            now.alpha_B[row],
            now.alpha_prev_B[row],
            row,
            row,
            lambda stream, r=row, n=now: n.noise(stream)[r],
        )
        torch.testing.assert_close(solver(alone, task.select(row))[0], together[n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("setting", [{"rho": 0.0}, {"relax": 1.5}, {"iterations": 0}, {"linearisations": 0}])
def test_bad_settings_are_named(setting: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        make_solver("proximal", setting)
