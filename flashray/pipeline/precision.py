"""In what precision a run's networks run, where that is left to the machine."""

from __future__ import annotations

import ray

from flashray.pipeline.cluster import Pools
from flashray.precision import Precision, native_precision


def choose_precision(pools: Pools) -> Precision:
    """What a pool's devices are for. Of a CPU pool it is the driver's machine that is asked."""
    if pools.device == "cpu":
        return native_precision("cpu")
    asked = ray.remote(native_precision).options(num_gpus=pools.solver["num_gpus"]).remote("cuda")
    return ray.get(asked)
