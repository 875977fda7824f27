"""Ray on one machine: nobody else can reach it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.hostile
_LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp
_LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def family(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                yield from family(int(status.parent.name))


def listening(pids: set[int]) -> set[str]:
    """The addresses, as the kernel writes them, on which these processes listen."""
    links: set[str] = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                links.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and f"socket:[{fields[9]}]" in links:
                found.add(fields[1].partition(":")[0])
    return found


def test_row_30_a_local_cluster_listens_on_this_machine_only(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def work() -> int:
        return os.getpid()

    pid = ray.get(work.remote())
    processes = set(family(os.getpid()))
    assert pid in processes
    found = listening(processes)
    assert found
    assert found <= _LOOPBACK
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ  # a cluster that is joined later is not affected
