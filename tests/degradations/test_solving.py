"""Every family through the engine: solvers need nothing of an operator but what the families share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashray.active_image import Job
from flashray.degradations import Degradation
from flashray.degradations.simulate import add_noise, draw_parameters
from flashray.engine import solve
from flashray.solvers import SOLVERS, make_solver
from tests.support.families import CASES, Case, case_id
from tests.support.golden import golden, toy_prior

SIZE = (32, 32)
STEPS = 3


def jobs(family: Degradation) -> list[Job]:
    """The three samples of the golden numbers, measured by the family and started from their own latents."""
    prior, x, seeds = toy_prior(), 2 * golden("clean") - 1, [11, 12, 13]
    drawn = [draw_parameters(family, seed) for seed in seeds]
    parameters = {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]}
    clean = family.bind(parameters, (x.shape[2], x.shape[3])).A(x)
    y = add_noise(clean, torch.full((3,), 0.05), torch.tensor(seeds))
    with torch.no_grad():
        z = prior.encode(x)
    return [
        Job(
            key=str(b),
            seed=seeds[b],
            y=y[b],
            parameters={name: value[b] for name, value in parameters.items()},
            noise_std=0.05,
            z_start=z[b],
            start_step=STEPS,
        )
        for b in range(3)
    ]


def allowed(case: Case, name: str) -> bool:
    if case.make().unknown:
        return name == "unguided"
    return case.make().linear or not make_solver(name, {}).needs_adjoint


def pairs() -> list[Any]:
    """Each family with each solver that the configuration's check lets through."""
    return [
        pytest.param(case, name, id=f"{case_id(case)}-{name}")
        for case in CASES
        for name in sorted(SOLVERS)
        if allowed(case, name)
    ]


@pytest.mark.parametrize(("case", "name"), pairs())
def test_a_batch_of_three_is_each_alone(case: Case, name: str) -> None:
    family, solver = case.make(), make_solver(name, {"every": 1, "iterations": 3} if name == "resample" else {})
    images = {}
    for slots in (3, 1):
        solved = list(solve(toy_prior(), family, solver, toy_prior().schedule, jobs(family), slots))
        assert all(one.error is None and one.nfe == STEPS for one in solved)
        images[slots] = torch.stack([one.image for one in sorted(solved, key=lambda one: one.key)])  # type: ignore[misc]
    torch.testing.assert_close(images[3], images[1], rtol=0, atol=2e-4)
