"""The precision of a run's networks, where the configuration says `auto`."""

from __future__ import annotations

import ray

from flashray.pipeline.cluster import Pools
from flashray.precision import Precision, native_precision


def choose_precision(pools: Pools) -> Precision:
    """The precision that suits a pool's devices. For a CPU pool, the driver's machine decides."""
    if pools.device == "cpu":
        return native_precision("cpu")
    asked = ray.remote(native_precision).options(num_gpus=pools.solver["num_gpus"]).remote("cuda")
    return ray.get(asked)
