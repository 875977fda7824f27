"""A Ray cluster for the duration of a start: connect, size the pools, and record automatic choices."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from flashray.device import Precision, native_precision
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline.cluster import Pools, await_nodes, cause_of, connect, data_settings, size_pools
from flashray.pipeline.large_pixels import large_pixels
from flashray.pipeline.open_run import Run
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.slots import choose_slots

STOPPED = "the run stopped: {}. What is committed stays, and the same command goes on from there"


@dataclass(frozen=True)
class RaySession:
    """The actor pools' sizes, and the quarantine, where workers record what they are doing."""

    pools: Pools
    quarantine: Any


@contextmanager
def ray_session(run: Run) -> Iterator[RaySession]:
    """A Ray cluster, pools that fit it, and a quarantine; an error of Ray becomes a message with the remedy."""
    gc.collect()  # the actor pools of an earlier run of this process that was stopped; its threads have ended by now
    own = connect()
    try:
        await_nodes(run.config)
        threads = run.record.get("threads")
        pools = size_pools(run.config, threads, run.models.weights, run.archive.total, lambda: _pixels(run))
        if run.record.get("device") not in (None, pools.device):
            raise ConfigError(
                f"output {run.output} holds a run made on {run.record['device']}, and this start would use "
                f"{pools.device}: the last digits would differ. Choose another output, or --device"
            )
        _note_choices(run, pools)
        with data_settings():
            yield RaySession(pools, start_quarantine())
    except ray.exceptions.RayError as error:
        # the error's frames refer to the actor pools, which keep their CPUs until the error is released
        error.__cause__ = error.__context__ = error.__traceback__ = None
        gc.collect()
        raise FlashrayError(STOPPED.format(cause_of(error))) from error
    finally:
        if own:
            ray.shutdown()


def _pixels(run: Run) -> int:
    """Of the archive's large images; they are looked at once, at the first start."""
    if "large_pixels" not in run.record:
        run.record["large_pixels"] = large_pixels(run.listing, run.config.io.max_megapixels)
    return int(run.record["large_pixels"])


def _note_choices(run: Run, pools: Pools) -> None:
    """Record device, threads, precision and slots in run.json: an image's last digits depend on them."""
    asked = run.requested.resources
    run.record |= {"device": pools.device, "threads": pools.threads}
    if asked.precision == "auto":
        run.record["precision"] = choose_precision(pools)
        run.take_choices()
    if not asked.slots:
        run.record["slots"] = choose_slots(run.worker_settings(pools), pools)
        run.take_choices()
    run.write_record()


def choose_precision(pools: Pools) -> Precision:
    """The precision that suits a pool's devices. For a CPU pool, the driver's machine decides."""
    if pools.device == "cpu":
        return native_precision("cpu")
    asked = ray.remote(native_precision).options(num_gpus=pools.solver["num_gpus"]).remote("cuda")
    return ray.get(asked)
