"""The plain loop and the engine give the same images: what is compared for speed is the same work."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed.reference_loop import latent_dps_loop
from flashray.degradations import make_degradation
from flashray.engine import solve
from flashray.solvers import make_solver
from tests.support.engine_jobs import jobs_of
from tests.support.golden import toy_prior


@pytest.mark.parametrize("steps", [40, 1000])
def test_the_plain_loop_and_the_engine_agree(steps: int):
    prior, blur = toy_prior().double(), make_degradation("gaussian_blur")
    schedule = prior.schedule.respaced(steps)
    jobs = jobs_of([12, 5, 0], channels=4)
    solved = {
        one.key: one.image for one in solve(prior, blur, make_solver("latent_dps", {"dc_step": 0.5}), schedule, jobs)
    }
    for job in jobs:
        image = latent_dps_loop(prior, blur, schedule, job, dc_step=0.5)
        assert image.std() > 0.01
        torch.testing.assert_close(image, solved[job.key], rtol=0, atol=1e-9)
