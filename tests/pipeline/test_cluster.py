"""Pools that fit the cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from flashray.errors import ConfigError
from flashray.pipeline import cluster
from flashray.pipeline.cluster import IO_CPUS, Pools, data_settings, size_pools
from tests.support.runs import config_of


def pools(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    threads: int | None = None,
    weights: int = 0,
    images: int = 1000,
    pixels: int = 0,
    **values: Any,
) -> Pools:
    """Pools on these nodes; a single one is this machine, of eight cores."""
    found = [{"Alive": True, "NodeID": str(i), "Resources": resources} for i, resources in enumerate(nodes)]
    dead = {"Alive": False, "NodeID": "dead", "Resources": {"CPU": 99, "GPU": 9}}
    monkeypatch.setattr(ray, "nodes", lambda: [*found, dead])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "0"))
    monkeypatch.setattr(cluster, "cores", lambda: 8)
    return size_pools(config_of("/a", "/o", **values), threads, weights, images, lambda: pixels)


def test_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    node = [{"CPU": 10}]  # eight cores and the spare two
    assert pools(monkeypatch, node) == Pools("cpu", 1, 1, 8, 8)
    assert pools(monkeypatch, node, solver_actors=1) == Pools("cpu", 8, 8, 1, 1)
    assert pools(monkeypatch, node, solver_actors=4) == Pools("cpu", 2, 2, 4, 4)
    assert pools(monkeypatch, node, threads=3) == Pools("cpu", 3, 3, 2, 2)  # as an earlier start had it


def test_a_few_images_have_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    node, nodes = [{"CPU": 10}], [{"CPU": 9, "memory": 2**36}] * 2
    assert pools(monkeypatch, node, images=1) == Pools("cpu", 8, 8, 1, 1)
    assert pools(monkeypatch, node, images=3) == Pools("cpu", 2, 2, 3, 3)
    assert pools(monkeypatch, node, images=8) == Pools("cpu", 1, 1, 8, 8)
    assert pools(monkeypatch, node, images=0) == Pools("cpu", 8, 8, 1, 1)
    assert pools(monkeypatch, node, images=1, threads=1) == Pools("cpu", 1, 1, 1, 1)  # as an earlier start had it
    assert pools(monkeypatch, node, images=1, solver_actors=4) == Pools("cpu", 2, 2, 4, 4)
    assert pools(monkeypatch, nodes, images=1) == Pools("cpu", 8, 8, 1, 1)
    assert pools(monkeypatch, nodes, images=4) == Pools("cpu", 4, 4, 4, 4)


def test_fewer_actors_of_more_threads_where_photos_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    node = [{"CPU": 10, "memory": 16 * 2**30}]
    assert pools(monkeypatch, node, pixels=128**2) == Pools("cpu", 1, 1, 8, 8)
    assert pools(monkeypatch, node, pixels=12_000_000) == Pools("cpu", 2, 2, 3, 3)
    assert pools(monkeypatch, node, pixels=50_000_000) == Pools("cpu", 8, 8, 1, 1)


def test_tasks_always_find_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 3, 4, 10):
        for actors in (None, 1, 2, 5, 20):
            for threads in (None, 1, 4, 8):
                found = pools(monkeypatch, [{"CPU": count}], threads=threads, solver_actors=actors)
                assert found.solver_actors * found.cpus + IO_CPUS <= count, (count, actors, threads, found)
                assert found.solver_actors >= 1


def test_load_and_write_tasks_are_few_beside_solvers_on_cpus() -> None:
    sizes = [
        Pools("cpu", threads, threads, actors, 1).io["compute"].size for threads, actors in ((1, 1), (2, 1), (8, 4))
    ]
    assert sizes == [1, 1, 8]
    assert Pools("cuda", 4, 4, 4, 8).io["compute"].size is None  # as many as find a place


def test_a_cluster_of_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 16}, {"CPU": 16}, {"object_store_memory": 1}]
    assert pools(monkeypatch, nodes) == Pools("cpu", 1, 1, 30, 30)


def test_gpus_are_taken_unless_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 2}]
    assert pools(monkeypatch, nodes) == Pools("cuda", 4, 4, 4, 8)
    assert pools(monkeypatch, nodes, solver_actors=2, severity_actors=1) == Pools("cuda", 4, 4, 2, 1)
    assert pools(monkeypatch, nodes, solver_actors=9, severity_actors=9) == Pools("cuda", 4, 4, 4, 8)
    assert pools(monkeypatch, nodes, threads=2) == Pools("cuda", 2, 2, 4, 8)  # as an earlier start had it
    assert pools(monkeypatch, nodes, device="cpu") == Pools("cpu", 1, 1, 30, 30)
    with pytest.raises(ConfigError, match="no GPU"):
        pools(monkeypatch, [{"CPU": 16}], device="cuda")


def test_two_severity_actors_share_a_gpu_and_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pools(monkeypatch, [{"CPU": 8, "GPU": 1}])
    assert found.solver == {"num_cpus": 4, "num_gpus": 1}
    assert found.severity == {"num_cpus": 2, "num_gpus": 0.5}
    on_cpus = pools(monkeypatch, [{"CPU": 16}, {"CPU": 16}])
    assert on_cpus.solver == on_cpus.severity == {"num_cpus": 1, "num_gpus": None}


def test_gpu_nodes_hold_their_actors_and_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (1, 2, 4, 8, 16, 96):
        for gpus in (1, 2, 4, 8):
            if count < gpus / 2:
                continue
            found = pools(monkeypatch, [{"CPU": count, "GPU": gpus}])
            assert found.solver_actors == gpus
            assert found.cpus * gpus + IO_CPUS <= count, (count, gpus, found)
            assert found.severity["num_cpus"] * found.severity_actors <= found.cpus * gpus
            assert 0 < found.cpus <= found.threads <= 4


def test_a_group_of_gpus_beside_a_group_of_cpus_and_a_head_without_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    head, gpu, cpu = {"memory": 1.0}, {"CPU": 8, "GPU": 1}, {"CPU": 32}
    assert pools(monkeypatch, [head, gpu, gpu, gpu, cpu, cpu]) == Pools("cuda", 4, 4, 3, 6)
    assert pools(monkeypatch, [head, cpu, cpu]) == Pools("cpu", 1, 1, 62, 62)


def test_nodes_of_different_sizes_get_actors_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pools(monkeypatch, [{"CPU": 2}, {"CPU": 16}]) == Pools("cpu", 1, 1, 16, 16)
    assert pools(monkeypatch, [{"CPU": 16}, {"CPU": 16}], solver_actors=3) == Pools("cpu", 7, 7, 3, 3)


def test_fewer_actors_of_more_threads_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """With models of 1 GiB an actor takes some 17.5 GiB."""
    gib = 1024**3

    def large(*memory: int) -> Pools:
        return pools(monkeypatch, [{"CPU": 17, "memory": size * gib} for size in memory], weights=gib)

    assert large(300, 300) == Pools("cpu", 1, 1, 32, 32)
    assert large(71, 71) == Pools("cpu", 4, 4, 8, 8)
    assert large(20, 20) == Pools("cpu", 16, 16, 2, 2)
    assert large(20, 300) == Pools("cpu", 8, 8, 3, 3)
    assert large(10, 10) == Pools("cpu", 16, 16, 1, 1)  # for want of a better one
    # whoever names a number has it
    found = pools(monkeypatch, [{"CPU": 17, "memory": 20 * gib}], weights=gib, solver_actors=4)
    assert found == Pools("cpu", 2, 2, 4, 4)


def test_a_cluster_without_a_node_to_work_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"minReplicas 1.*--autoscale_seconds"):
        pools(monkeypatch, [{"memory": 1.0}])


@pytest.mark.parametrize("comes", [True, False])
def test_an_autoscaler_is_asked_for_the_actors_places(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comes: bool
) -> None:
    asked: list[Any] = []
    group = SimpleNamespace(wait=lambda seconds: comes)
    monkeypatch.setattr(cluster, "placement_group", lambda bundles, strategy: asked.append(bundles) or group)
    monkeypatch.setattr(cluster, "remove_placement_group", asked.append)
    cluster.await_nodes(config_of("/a", "/o"))
    assert asked == []
    config = config_of("/a", "/o", device="cuda", solver_actors=2, autoscale_seconds=1e-9)
    cluster.await_nodes(config)
    assert asked == [[{"CPU": 1.0, "GPU": 1.0}] * 2, group]  # and let go again
    assert ("has not grown" in caplog.text) is not comes


@pytest.mark.parametrize("address", ["head", "1.2.3.4:x", ":6379", "http://head:8265"])
def test_an_address_that_is_none_is_named_with_the_remedy(address: str) -> None:
    """In a process of its own, because this one may have a cluster already."""
    connecting = [sys.executable, "-c", "from flashray.pipeline.cluster import connect; connect()"]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": root}
    said = subprocess.run(connecting, env=environment, capture_output=True, text=True, timeout=120).stderr
    assert f"flashray.errors.ConfigError: the Ray cluster of RAY_ADDRESS={address} cannot be reached" in said
    assert "without RAY_ADDRESS the run stays on this machine" in said


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
