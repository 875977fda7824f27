"""The Ray side of a run: a cluster to work on, the sizes of the actor pools, and settings of Ray Data."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import ray
import ray.data

from flashray.config import ReconstructConfig
from flashray.errors import ConfigError

# Logical CPUs beside the solver's: load and write tasks need a place to run while the actors hold theirs.
SPARE_CPUS = 2
IO_CPUS = 0.5  # of a load or write task; unlike any actor's, so that Ray Data does not fuse reading into the solver
WAVE = 10_000  # tasks of a stage in one Ray Data program; beyond some 20,000 its bookkeeping weighs
_OBJECT_STORE = 2 * 1024**3  # bytes, or less where the machine is small
_GPU_THREADS = 4  # CPU threads of an actor that has a GPU
# What Ray says by default and a run says better itself, or not at all; its files in /tmp/ray keep the rest
_QUIET = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
    "ray._private.authentication.authentication_token_setup": logging.ERROR,
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pools:
    """Sizes of the actor pools.

    Attributes:
        device: cpu or cuda.
        threads: what one actor computes with.
        cpus: what one actor asks of Ray; less than its threads where the tasks would find no place otherwise.
    """

    device: str
    threads: int
    cpus: float
    solver_actors: int
    severity_actors: int

    @property
    def gpus(self) -> float | None:
        """What one actor asks of Ray."""
        return 1 if self.device == "cuda" else None


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def connect() -> bool:
    """Connect to the configured cluster (RAY_ADDRESS), or start one on this machine; whether this call did either.

    Raises:
        ConfigError: when the configured cluster cannot be reached.
    """
    if ray.is_initialized():
        return False
    for logger, level in _QUIET.items():
        logging.getLogger(logger).setLevel(level)
    address = os.environ.get("RAY_ADDRESS", "local")
    if address not in ("", "local"):
        try:
            with _own_sigterm():
                ray.init(log_to_driver=False)
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise ConfigError(
                f"the Ray cluster of RAY_ADDRESS={address} cannot be reached ({error}); a cluster with tokens wants "
                "RAY_AUTH_MODE=token and its token; without RAY_ADDRESS the run stays on this machine"
            ) from error
        return True
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # for every pool of Ray Data, Ray's core writes an error line about Ray Data's own arguments (its issue 53727)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with _stderr_without("RAY_BACKEND_LOG_LEVEL"), _own_sigterm():
        ray.init(
            address="local",
            num_cpus=cores() + SPARE_CPUS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=min(_OBJECT_STORE, _memory() // 4),
        )
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's own way to end on SIGTERM; `ray.init` puts another in its place."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _stderr_without(notice: str) -> Iterator[None]:
    """Keep back the lines with this notice; they come from C++, so the file descriptor itself is caught for a while."""
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
    """What went wrong, out of an error of Ray: the innermost exception of the worker's trace, on one line."""
    lines = [line for line in str(error).splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return lines[0] if lines else f"{type(error).__name__}: {error}"


def size_pools(config: ReconstructConfig, threads: int | None) -> Pools:
    """Pools that fit the cluster.

    Args:
        threads: an actor's threads as recorded by an earlier start of the same run; kept, because the last digits of a
            convolution may depend on them.

    Raises:
        ConfigError: when the device is cuda and the cluster has no GPU.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    cpus = [node["Resources"]["CPU"] for node in nodes] or [1.0]
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    if config.device == "cuda" and not gpus:
        raise ConfigError("device is cuda, and the Ray cluster has no GPU; use --device cpu or auto")
    device = "cuda" if gpus and config.device != "cpu" else "cpu"
    solver_actors = config.solver_actors or (gpus if device == "cuda" else len(cpus))
    if threads is None:
        free = [max(1.0, count - 1) for count in cpus]  # one CPU a node is left for tasks
        if [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]:
            free = [min(free[0], cores())]  # this machine, which may count more CPUs than it has
        threads = max(1, min(int(sum(free)) // solver_actors, int(min(free))))
        if device == "cuda":
            threads = min(threads, _GPU_THREADS)
    asked = min(float(threads), max(cpus) / 2) if max(cpus) < threads + 1 else float(threads)
    room = max(1, sum(int((count - IO_CPUS) // asked) for count in cpus))
    if solver_actors > room:
        log.warning("the cluster has room for %d actors of %g CPUs each, not for %d", room, asked, solver_actors)
    severity_actors = config.severity_actors or solver_actors
    return Pools(device, threads, asked, min(solver_actors, room), min(severity_actors, room))


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
