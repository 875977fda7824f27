"""Ray nodes as users start them with `ray start`: processes that can be killed, on ports of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.seaweedfs import free_ports

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
HOST = "127.0.0.1"


@dataclass
class Cluster:
    """A head, and the nodes that were added.

    Attributes:
        address: of the head, for RAY_ADDRESS.
        dashboard: its address for `ray job`.
    """

    folder: Path
    address: str
    dashboard: str
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Of whoever works with the cluster."""
        return variables() | {"RAY_API_SERVER_ADDRESS": self.dashboard}

    def add(self, cpus: int, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A node with so many CPUs for tasks, whose workers have this environment besides."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", environment=environment)

    def wait_for_nodes(self, count: int) -> None:
        """Until so many nodes, the head included, have joined."""
        deadline = time.monotonic() + 120
        while True:
            with urllib.request.urlopen(f"{self.dashboard}/nodes?view=summary", timeout=30) as answer:
                found = json.load(answer)["data"]["summary"]
            if sum(node["raylet"].get("state") == "ALIVE" for node in found) >= count:
                return
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.5)

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def _start(self, *flags: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        fixed = [f"--node-ip-address={HOST}"]
        if "--head" not in flags:
            fixed.append(f"--dashboard-agent-listen-port={free_ports(1)[0]}")
        fixed += ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        with open(self.folder / f"{len(self.nodes)}.log", "wb") as log:
            command = [*RAY, "start", *flags, *fixed]
            own = variables() | dict(environment or {})
            node = subprocess.Popen(command, stdout=log, stderr=log, env=own, start_new_session=True)
        self.nodes.append(node)
        return node


def kill(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the node's processes; its workers end when they find it gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


@contextmanager
def cluster(cpus: int = 0) -> Iterator[Cluster]:
    """A head that takes jobs, and with CPUs tasks too.

    Jobs want a head with CPUs and no other node: nodes of one machine share a folder, and each that unpacks a job's
    working folder there takes away the one that the job is in.
    """
    port, dashboard, agent = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="fr", ignore_cleanup_errors=True) as folder:  # sockets want a short path
        one = Cluster(Path(folder), f"{HOST}:{port}", f"http://{HOST}:{dashboard}")
        try:
            one._start(
                *("--head", f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}/ray"),
                *(f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}"),
                f"--dashboard-agent-listen-port={agent}",
                # a killed node is noticed within seconds instead of half a minute
                "--system-config="
                '{"health_check_period_ms":1000,"health_check_timeout_ms":5000,"health_check_failure_threshold":4}',
            )
            _wait_for_agent(one, agent)
            yield one
        finally:
            for node in reversed(one.nodes):
                kill(node)


def variables() -> dict[str, str]:
    left_out = ("PYTHONPATH", "RAY_ADDRESS")  # what a job needs comes with its working folder
    values = {name: value for name, value in os.environ.items() if name not in left_out}
    values["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{values['PATH']}"  # a job says `python`
    return values | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}


def _wait_for_agent(one: Cluster, port: int) -> None:
    """The API answers before its agent can start a job."""
    deadline = time.monotonic() + 120
    while True:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://{HOST}:{port}/api/local_raylet_healthz", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        assert one.nodes[0].poll() is None, one.log()
        assert time.monotonic() < deadline, one.log()
        time.sleep(0.2)
