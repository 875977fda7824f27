"""The number of images that a solver actor has in flight: as many as memory allows, measured once for each run."""

from __future__ import annotations

from collections.abc import Callable

import ray
import torch

from flashray.active_image import Job, make_problem
from flashray.degradations.simulate import draw_parameters
from flashray.engine import advance
from flashray.pipeline.cluster import Pools
from flashray.pipeline.worker_settings import WorkerSettings

CPU_SLOTS = 8  # more gain nothing there: `make bench`, part engine
MOST = 64
_MARGIN = 0.8  # share of the free memory that is used; other processes may need some of it later


def choose_slots(work: WorkerSettings, pools: Pools) -> int:
    """The slots of every actor of the pool; on a GPU a separate actor measures the memory of an update."""
    if pools.device == "cpu":
        return CPU_SLOTS
    actor = ray.remote(Prober).options(**pools.solver).remote(work)
    try:
        return int(ray.get(actor.slots.remote()))
    finally:
        ray.kill(actor)


def slots_that_fit(peak: Callable[[int], int], free: int) -> int:
    """The largest power of two of images whose update stays within `_MARGIN` of the free bytes; at least 1.

    `peak` tells the additional bytes of an update of 1 and of 2 images; larger numbers are extrapolated linearly.
    """
    one, two = peak(1), peak(2)
    each = max(two - one, 1)
    fitting = (free * _MARGIN - (one - each)) / each
    slots = 1
    while slots * 2 <= min(fitting, MOST):
        slots *= 2
    return slots


class Prober:
    """A process with the run's models on the pool's device."""

    def __init__(self, work: WorkerSettings) -> None:
        self.restorer = work.restorer()  # prior and encoder are in memory, as when the run solves

    def slots(self) -> int:
        """The number of images that fits this device now."""
        self.peak(1)  # the first of everything allocates more
        torch.cuda.empty_cache()
        return slots_that_fit(self.peak, torch.cuda.mem_get_info(self.restorer.device)[0])

    def peak(self, count: int) -> int:
        """Bytes that an update of so many images takes at most."""
        device = self.restorer.device
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self.update(count)
        return torch.cuda.max_memory_allocated(device) - before

    def update(self, count: int) -> None:
        """One update of images of noise at the chain's first step."""
        restorer, size = self.restorer, self.restorer.prior.sample_size
        parameters = {name: value[0] for name, value in draw_parameters(restorer.degradation, 0).items()}
        y = torch.zeros(3, *restorer.degradation.measurement_size((size, size)))
        z_start = torch.zeros(restorer.latent_shape(), device=restorer.device)
        jobs = [Job(str(n), n, y, parameters, 0.05, z_start, 1) for n in range(count)]
        seed_B, problem = make_problem(restorer.prior, restorer.degradation, jobs)
        z = torch.stack([job.z_start for job in jobs])
        index_B = torch.full((count,), len(restorer.schedule) - 1)
        eta = restorer.recipe.solver.eta
        advance(restorer.prior, restorer.solver, restorer.schedule, problem, z, index_B, seed_B, eta)
