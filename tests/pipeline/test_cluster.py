"""Pools that fit the cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from flashray.config import ReconstructConfig
from flashray.errors import ConfigError
from flashray.pipeline import cluster
from flashray.pipeline.cluster import IO_CPUS, Pools, data_settings, size_pools


def pools(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], threads: int | None = None, **values: Any
) -> Pools:
    """Pools on these nodes; a single one is this machine, of eight cores."""
    found = [{"Alive": True, "NodeID": str(i), "Resources": resources} for i, resources in enumerate(nodes)]
    dead = {"Alive": False, "NodeID": "dead", "Resources": {"CPU": 99, "GPU": 9}}
    monkeypatch.setattr(ray, "nodes", lambda: [*found, dead])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0"))
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    return size_pools(ReconstructConfig("/a", "/o", **values), threads)


def test_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    node = [{"CPU": 10}]  # eight cores and the spare two
    assert pools(monkeypatch, node) == Pools("cpu", 8, 8, 1, 1)
    assert pools(monkeypatch, node, solver_actors=4) == Pools("cpu", 2, 2, 4, 4)
    assert pools(monkeypatch, node, threads=3) == Pools("cpu", 3, 3, 1, 1)  # as an earlier start had it


def test_tasks_always_find_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 3, 4, 10):
        for actors in (None, 1, 2, 5, 20):
            for threads in (None, 1, 4, 8):
                found = pools(monkeypatch, [{"CPU": count}], threads=threads, solver_actors=actors)
                assert found.solver_actors * found.cpus + IO_CPUS <= count, (count, actors, threads, found)
                assert found.solver_actors >= 1


def test_a_cluster_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 16}, {"CPU": 16}, {"object_store_memory": 1}]
    assert pools(monkeypatch, nodes) == Pools("cpu", 15, 15, 2, 2)


def test_gpus_are_taken_unless_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}]
    found = pools(monkeypatch, nodes, severity_actors=1)
    assert (found.device, found.solver_actors, found.severity_actors, found.gpus) == ("cuda", 4, 1, 1)
    assert 1 <= found.threads <= 4
    assert pools(monkeypatch, nodes, device="cpu").gpus is None
    with pytest.raises(ConfigError, match="no GPU"):
        pools(monkeypatch, [{"CPU": 16}], device="cuda")


def test_settings_are_put_back() -> None:
    context = ray.data.DataContext.get_current()
    before = context.execution_no_progress_timeout_s
    with data_settings():
        assert context.execution_no_progress_timeout_s == -1
        assert not context.enable_progress_bars
    assert context.execution_no_progress_timeout_s == before


def test_the_cause_is_the_innermost_error() -> None:
    trace = ray.exceptions.RayError(
        "\x1b[36mray::MapBatches(write)()\x1b[39m\n  File ...\nOSError: [Errno 28] No space left on device\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "ray.exceptions.UserCodeException: UDF failed"
    )
    assert cluster.cause_of(trace) == "OSError: [Errno 28] No space left on device"
    assert cluster.cause_of(ray.exceptions.RayError("gone")) == "RayError: gone"
