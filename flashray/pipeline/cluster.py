"""The Ray side of a run: a cluster to work on, the sizes of the actor pools, and settings of Ray Data."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray._private import ray_constants
from ray.util.placement_group import placement_group, remove_placement_group

from flashray import storage
from flashray.errors import ConfigError
from flashray.memory import ONE_ARENA, machine_memory
from flashray.pipeline.pixel_budget import PIXEL_BYTES
from flashray.pipeline.progress import clock
from flashray.pipeline.run_config import RunConfig

# Logical CPUs in addition to the solvers': load and write tasks need CPUs while the actors hold theirs.
SPARE_CPUS = 2
IO_CPUS = 0.5  # of a load or write task; unlike any actor's, so that Ray Data does not fuse reading into the solver
WAVE = 10_000  # tasks of a stage in one Ray Data program; beyond some 20,000 its bookkeeping is slow
_OBJECT_STORE = 2 * 1024**3  # bytes, or less where the machine is small
_THREADS_PER_IO = 4  # threads of CPU solvers that one load or write task serves with ease
_GPU_THREADS = 4  # CPU threads of an actor that has a GPU
_SEVERITIES = 2  # severity actors a GPU: one's images are unpacked while the other computes
_USED = 0.75  # share of the cores that actors of one size have to use, where nodes differ or memory is short
_PROCESS = 3 * 1024**3 // 2  # bytes of a CPU actor whose models weigh next to nothing
_WORKSPACE = 16  # times its models' weights, which what an update keeps grows with
_LOOK_EVERY = 15  # seconds between two lines while the run waits for nodes
# Messages of Ray that a run prints itself or that are not needed; Ray's log files keep them
_QUIET = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
}
_NO_GPU = (
    "device is cuda, and the Ray cluster has no GPU; use --device cpu or auto, or, where a group of GPUs "
    "scales from zero, --solver_actors N --autoscale_seconds 900"
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pools:
    """Sizes of the actor pools."""

    device: str  # cpu or cuda
    threads: int  # what one actor computes with
    # CPUs that a solver actor requests from Ray; fewer than its threads where tasks would have none otherwise
    cpus: float
    solver_actors: int
    severity_actors: int

    @property
    def solver(self) -> dict[str, Any]:
        """The resources that a solver actor requests from Ray."""
        return {"num_cpus": self.cpus, "num_gpus": 1 if self.device == "cuda" else None}

    @property
    def severity(self) -> dict[str, Any]:
        """The resources that a severity actor requests: on GPUs a share of a solver actor's, because it needs less."""
        if self.device != "cuda":
            return {"num_cpus": self.cpus, "num_gpus": None}
        return {"num_cpus": self.cpus / _SEVERITIES, "num_gpus": 1 / _SEVERITIES}

    @property
    def io(self) -> dict[str, Any]:
        """The resources that load and write tasks request.

        With solvers on CPUs a few tasks are enough, and more would do harm: each new worker imports torch on the
        solvers' cores, and units loaded by workers that are already running would overtake the most expensive units.
        """
        most = max(1, self.threads * self.solver_actors // _THREADS_PER_IO) if self.device == "cpu" else None
        return {"num_cpus": IO_CPUS, "compute": ray.data.TaskPoolStrategy(size=most)}


@dataclass(frozen=True)
class Node:
    """The resources of a node of the cluster; `memory` in bytes."""

    cpus: float
    gpus: int = 0
    memory: float = sys.maxsize


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or "local"


def refuse_absent_gpu(device: str) -> None:
    """ConfigError where the cluster is going to be this machine, the device is cuda, and this machine has no GPU."""
    here = not ray.is_initialized() and _address() == "local"
    if device == "cuda" and here and not torch.cuda.is_available():
        raise ConfigError(_NO_GPU)


def connect() -> bool:
    """Connect to the configured cluster (RAY_ADDRESS), or start one on this machine; returns whether this call did.

    ConfigError when the configured cluster cannot be reached.
    """
    if ray.is_initialized():
        return False
    for logger, level in _QUIET.items():
        logging.getLogger(logger).setLevel(level)
    # Ray's core writes an error line for each pool of Ray Data (Ray's issue 53727)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _stderr_without("RAY_BACKEND_LOG_LEVEL"), _own_sigterm():
        address = _address()
        if address == "local":
            _start_here()
            return True
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, ray.exceptions.RayError) as error:
            shown, reason = storage.redact(address), storage.redact(str(error))
            raise ConfigError(
                f"the Ray cluster of RAY_ADDRESS={shown} cannot be reached ({reason}); a cluster with tokens needs "
                "RAY_AUTH_MODE=token and its token; without RAY_ADDRESS the run stays on this machine"
            ) from error
    return True


def _start_here() -> None:
    """A cluster on this machine, which ends with the driver."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _on_this_machine_only(), _environment(ONE_ARENA):
        ray.init(
            address="local",
            num_cpus=cores() + SPARE_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=min(_OBJECT_STORE, machine_memory() // 4),
        )


@contextmanager
def _on_this_machine_only() -> Iterator[None]:
    """Let Ray's ports listen on 127.0.0.1 alone, by its switch for machines that join no cluster."""
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.pop(name, None)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({name: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if given is not None:
            os.environ[name] = given


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile; what is set already stays."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's handler of SIGTERM; `ray.init` replaces it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _stderr_without(notice: str) -> Iterator[None]:
    """Drop the lines with this notice; they come from C++, so the file descriptor itself is captured meanwhile."""
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            os.write(2, b"".join(line for line in caught if notice.encode() not in line))


def cause_of(error: BaseException) -> str:
    """The cause of an error of Ray: the innermost exception of the worker's trace, on one line."""
    lines = [line for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return lines[0] if lines else f"{type(error).__name__}: {error}"


def size_pools(config: RunConfig, threads: int | None, weights: int, images: int, pixels: Callable[[], int]) -> Pools:
    """Pools that fit the cluster as it is now.

    `threads` are those of an actor, as an earlier start recorded them: a convolution's last digits may depend on them.
    `weights` is the size of the models in bytes. More CPU actors than `images` would have nothing to do. `pixels` gives
    those of the large images, which an actor holds one of; it is asked only where the number of actors follows from it.
    ConfigError when the cluster has no CPUs, or the device is cuda and it has no GPU.
    """
    found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    has = [node["Resources"] for node in found]
    nodes = [Node(one["CPU"], int(one.get("GPU", 0)), one.get("memory", sys.maxsize)) for one in has]
    if not nodes:
        raise ConfigError(
            "no node of the Ray cluster has CPUs to work on. Start one (a group that scales from zero: minReplicas 1), "
            "or let the run ask for its nodes with --device, --solver_actors and --autoscale_seconds"
        )
    gpus = sum(node.gpus for node in nodes)
    if config.resources.device == "cuda" and not gpus:
        raise ConfigError(_NO_GPU)
    if gpus and config.resources.device != "cpu":
        return _pools_on_gpus(nodes, config, threads)
    here = [node["NodeID"] for node in found] == [ray.get_runtime_context().get_node_id()]
    photo = 0 if config.resources.solver_actors else PIXEL_BYTES * pixels()
    memory = _PROCESS + _WORKSPACE * weights + photo
    return _pools_on_cpus(nodes, config, threads, memory, images, cores() if here else None)


def _pools_on_gpus(nodes: Sequence[Node], config: RunConfig, threads: int | None) -> Pools:
    """One solver actor a GPU; nodes without GPUs run the load and write tasks."""
    nodes = [node for node in nodes if node.gpus]
    threads = threads or min(max(1, int(node.cpus - 1) // node.gpus) for node in nodes)
    threads = min(threads, _GPU_THREADS)
    asked = min(threads, *((node.cpus - IO_CPUS) / node.gpus for node in nodes))
    room = sum(node.gpus for node in nodes)
    solver_actors = _at_most(room, config.resources.solver_actors or room, "one a GPU")
    severity_actors = min(config.resources.severity_actors or _SEVERITIES * solver_actors, _SEVERITIES * room)
    asked = math.floor(asked * 10_000) / 10_000  # Ray counts in ten-thousandths
    return Pools("cuda", threads, asked, solver_actors, severity_actors)


def _pools_on_cpus(
    nodes: Sequence[Node], config: RunConfig, threads: int | None, memory: int, images: int, most: int | None
) -> Pools:
    """Actors of `memory` bytes and equal threads, or as requested; `most` cores of this machine.

    Threads of one actor wait for each other at every operation; actors do not. So there are as many actors as images
    and memory allow, up to one a core, and their threads share the cores.
    """
    free = [min(max(1, int(node.cpus) - 1), most or sys.maxsize) for node in nodes]  # one CPU a node is left for tasks

    def capacity(threads: int) -> int:
        return sum(count // threads for count in free)

    def actors(threads: int) -> int:
        fit = [min(count // threads, node.memory // memory) for node, count in zip(nodes, free, strict=True)]
        return min(images, int(sum(fit)))

    sizes = range(1, max(free) + 1)
    if threads is None and config.resources.solver_actors:
        threads = max((size for size in sizes if capacity(size) >= config.resources.solver_actors), default=1)
    elif threads is None:
        busy = (size for size in sizes if size * actors(size) >= _USED * sum(free))
        enough = min(busy, default=max(sizes, key=lambda size: (size * actors(size), size)))
        threads = max(size for size in sizes if actors(size) >= actors(enough))  # no core is left over
    largest = max(node.cpus for node in nodes)
    asked = min(float(threads), largest / 2) if largest < threads + 1 else float(threads)
    room = max(1, sum(int((node.cpus - IO_CPUS) // asked) for node in nodes))
    wanted = config.resources.solver_actors or max(1, actors(threads))
    solver_actors = _at_most(room, wanted, f"{asked:g} CPUs each")
    return Pools("cpu", threads, asked, solver_actors, min(config.resources.severity_actors or solver_actors, room))


def _at_most(room: int, wanted: int, size: str) -> int:
    if wanted > room:
        log.warning("the cluster has room for %d actors (%s), not for %d", room, size, wanted)
    return min(room, wanted)


def await_nodes(config: RunConfig) -> None:
    """Ask an autoscaling cluster for the solver actors' CPUs and GPUs, and wait for them.

    The autoscaler reacts to a placement group. The group is removed at once; the nodes stay until their idle timeout,
    and the actors take them before that.
    """
    if not config.resources.autoscale_seconds:
        return
    assert config.resources.solver_actors  # check() asks for it
    bundle = {"CPU": 1.0, "GPU": 1.0} if config.resources.device == "cuda" else {"CPU": 1.0}
    group = placement_group([bundle] * config.resources.solver_actors, strategy="SPREAD")
    began = time.monotonic()
    try:
        while not group.wait(_LOOK_EVERY):
            waited = time.monotonic() - began
            if waited > config.resources.autoscale_seconds:
                log.warning("the cluster has not grown to %d actors in %.0f s", config.resources.solver_actors, waited)
                return
            print(f"waiting for nodes for {config.resources.solver_actors} actors  {clock(waited)}", flush=True)
    finally:
        remove_placement_group(group)


def waves(table: pa.Table) -> Iterator[pa.Table]:
    """The rows in parts that one Ray Data program can take."""
    for first in range(0, len(table), WAVE):
        yield table.slice(first, WAVE)


def blocks(table: pa.Table) -> list[pa.Table]:
    """Each row as a table of its own: one block, and so one task. Blocks of several rows would be fused into one."""
    return [table.take([i]) for i in range(len(table))]


@contextmanager
def data_settings() -> Iterator[None]:
    """Ray Data's settings for this run, put back afterwards."""
    context = ray.data.DataContext.get_current()
    before = (context.execution_no_progress_timeout_s, context.enable_progress_bars, context.print_on_execution_start)
    context.execution_no_progress_timeout_s = -1  # a unit may take longer than the default half hour
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        context.execution_no_progress_timeout_s, context.enable_progress_bars, context.print_on_execution_start = before
