"""Two Ray nodes: the work spreads over them, and one that is killed is not missed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import Told, table, tell, undisturbed  # noqa: F401
from tests.support.fault_harness import HOOK, IMAGES, ROOT, Job
from tests.support.ray_nodes import Cluster, cluster, kill
from tests.support.runs import record

pytestmark = pytest.mark.fault
WHOLE = Verified(images=IMAGES, restored=IMAGES)


@contextmanager
def two_nodes(job: Job) -> Iterator[tuple[Cluster, list[subprocess.Popen[bytes]]]]:
    """A head without tasks and two nodes that note what the job's workers are called for."""
    job.folder.mkdir(parents=True)
    (job.folder / "slow-solve").touch()
    noting = {"PYTHONPATH": os.pathsep.join([str(HOOK), str(ROOT)]), "FLASHRAY_FAULT": str(job.folder)}
    with cluster() as both:
        nodes = []
        for _ in range(2):  # one after the other: two that start at once on a machine take each other's ports
            nodes.append(both.add(cpus=2, environment=noting))
            both.wait_for_nodes(1 + len(nodes))
        job.environment = {"RAY_ADDRESS": both.address, "RAY_AUTH_MODE": "disabled"}
        yield both, nodes


def of(nodes: list[subprocess.Popen[bytes]], worker: int) -> int | None:
    """The process of the node that a worker descends from; None when it has ended."""
    known = {node.pid for node in nodes}
    try:
        while worker > 1 and worker not in known:
            worker = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return None
    return worker if worker in known else None


def solvers(job: Job, nodes: list[subprocess.Popen[bytes]]) -> dict[str, int | None]:
    """The node of the worker that is at each unit."""
    found = {}
    for path in (record(job.output) / "attempts").glob("*.1"):
        with suppress(FileNotFoundError):  # solved meanwhile
            if mark := path.read_text():
                found[path.stem] = of(nodes, json.loads(mark)["pid"])
    return found


def test_a_killed_node_of_two(tiny_models: TinyModels, photos: Path, tmp_path: Path, tell: Told) -> None:  # noqa: F811
    """The units that it was at are begun again on the other one."""
    settings = {"unit_images": 1, "slots": 1, "solver_actors": 2}
    whole = Job(tiny_models, str(photos), str(tmp_path / "whole"), tmp_path / "notes of whole", settings)
    with two_nodes(whole) as (_, nodes):
        begun_on: set[int | None] = set()  # a unit's marker goes when it is solved, so no moment need show both nodes

        def both_began() -> bool:
            begun_on.update(solvers(whole, nodes).values())
            return {node.pid for node in nodes} <= begun_on

        def look() -> None:
            whole.wait_for(both_began)

        assert whole.run(while_running=look) == 0, whole.said
    assert whole.verified() == WHOLE

    job = Job(tiny_models, str(photos), str(tmp_path / "run"), tmp_path / "notes", settings)
    with two_nodes(job) as (_, nodes):
        victim = nodes[1]

        def kill_one() -> None:
            def at_work() -> bool:
                begun = solvers(job, nodes)
                done = {path.stem for path in (record(job.output) / "commits").glob("*.parquet")}
                return bool(done) and victim.pid in {node for unit, node in begun.items() if unit not in done}

            job.wait_for(at_work)
            kill(victim)
            with open(job.folder / "log", "a") as log:
                log.write("strike node\n")
            assert len(RunStatus.read(job.output).units) < IMAGES, "killed too late"

        assert job.run(while_running=kill_one) == 0, job.said
    assert job.verified() == WHOLE
    assert job.reconstructions() == whole.reconstructions()
    tell("kill -9 of a node of two", "mid-solve", job, whole)
