"""The choice of slots: what fits the memory, and what is kept for the run's next start."""

from __future__ import annotations

import dataclasses

import pytest

from flashray.pipeline.cluster import Pools
from flashray.pipeline.slots import CPU_SLOTS, MOST, Prober, choose_slots, slots_that_fit
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.recipe import DegradationConfig
from tests.conftest import TinyModels
from tests.support.runs import changed

GB = 10**9


def line(base: int, each: int):
    """Memory of so many images: the base, and so much for each."""
    return lambda count: base + each * count


@pytest.mark.parametrize(
    ("base", "each", "free", "slots"),
    [
        (0, GB, 10 * GB, 8),  # 8 GB of the 10
        (0, GB, 9 * GB, 4),  # 7.2 GB would do for 7
        (3 * GB, GB, 10 * GB, 4),
        (0, 20 * GB, 10 * GB, 1),  # nothing less can be tried
        (0, 1000, 10 * GB, MOST),
        (GB, 0, 10 * GB, MOST),
    ],
)
def test_slots_fill_the_memory_but_for_a_margin(base: int, each: int, free: int, slots: int) -> None:
    assert slots_that_fit(line(base, each), free) == slots


def test_a_cpu_pool_is_not_measured(work: WorkerSettings) -> None:
    assert choose_slots(work, Pools("cpu", 1, 1, 1, 1)) == CPU_SLOTS


@pytest.mark.parametrize("family", ["gaussian_blur", "random_inpainting", "super_resolution", "nonlinear_blur"])
def test_the_update_that_is_measured_runs(work: WorkerSettings, tiny_models: TinyModels, family: str) -> None:
    config = changed(work.config, degradation=DegradationConfig(name=family))
    seen: list[int] = []
    prober = Prober(dataclasses.replace(work, config=config))
    prober.restorer.prior.denoiser.register_forward_hook(
        lambda module, arguments, output: seen.append(len(arguments[0]))
    )
    prober.update(3)
    assert seen == [3]
