"""Ray on one machine: nobody else can reach it."""

from __future__ import annotations

import os

import psutil
import pytest

pytestmark = pytest.mark.hostile


def test_row_30_a_local_cluster_listens_on_this_machine_only(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def work() -> int:
        return os.getpid()

    assert ray.get(work.remote()) != os.getpid()
    mine = psutil.Process()
    found = [
        connection.laddr.ip
        for process in (mine, *mine.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert found
    assert {ip.removeprefix("::ffff:") for ip in found} == {"127.0.0.1"}
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ  # a cluster that is joined later is not affected
