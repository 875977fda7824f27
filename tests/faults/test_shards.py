"""Runs from shards to shards that are disturbed: each shard once, with the bytes of an undisturbed run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from flashray import storage
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, Fault, Job, kept, stamps
from tests.support.fault_s3 import clients_of, know, start_again_after_each_kill
from tests.support.seaweedfs import Weed
from tests.support.shard_files import loose_files, write_parquet, write_tars

pytestmark = pytest.mark.fault
WHOLE = Verified(images=IMAGES, restored=IMAGES)
MOMENTS = {
    "mid-solve": Fault("solve", victim="driver", call=4, after="commit"),
    "before the put of a shard": Fault("write", victim="driver", call=2),
    "between a shard's put and the commit": Fault("commit", victim="driver", call=2),
}


def to_shards(models: TinyModels, archive: str | Path, folder: Path, name: str, kind: str) -> Job:
    settings = {"shards": kind, "images_per_shard": 4, "unit_images": "null"}
    return Job(models, str(archive), str(folder / name), folder / f"{name} notes", settings)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_driver(tiny_models: TinyModels, photos: Path, tmp_path: Path, tell: Told, moment: str) -> None:
    write_tars(tmp_path / "tars", loose_files(photos), 5)
    undisturbed = to_shards(tiny_models, tmp_path / "tars", tmp_path, "undisturbed", "tar")
    assert undisturbed.run() == 0, undisturbed.said
    assert undisturbed.verified() == WHOLE
    job = to_shards(tiny_models, tmp_path / "tars", tmp_path, "run", "tar")
    assert job.run(faults=[MOMENTS[moment]]) == -signal.SIGKILL
    before = stamps(job, "plan", "commits")
    (index,) = stamps(job).keys() & {Path(job.output) / "_flashray" / "index.parquet"}
    indexed = index.stat().st_ctime_ns
    assert len(RunStatus.read(job.output).pending)
    assert job.run() == 0, job.said
    assert kept(before)
    assert index.stat().st_ctime_ns == indexed
    assert job.verified() == WHOLE
    assert job.reconstructions() == undisturbed.reconstructions()
    tell("kill -9 of the driver, tars to tars", moment, job, undisturbed)


def test_a_killed_worker(tiny_models: TinyModels, photos: Path, tmp_path: Path, tell: Told) -> None:
    write_tars(tmp_path / "tars", loose_files(photos), 5)
    undisturbed = to_shards(tiny_models, tmp_path / "tars", tmp_path, "undisturbed", "parquet")
    assert undisturbed.run() == 0, undisturbed.said
    job = to_shards(tiny_models, tmp_path / "tars", tmp_path, "run", "parquet")
    assert job.run(faults=[Fault(point, call=2) for point in ("read", "solve", "commit")]) == 0, job.said
    assert job.strikes == 3
    assert job.verified() == WHOLE
    assert job.reconstructions() == undisturbed.reconstructions()
    tell("kill -9 of a worker, tars to Parquet", "read, solve, commit", job, undisturbed)


def test_on_s3_with_a_server_that_is_killed(tiny_models: TinyModels, photos: Path, tmp_path: Path, tell: Told) -> None:
    """Parquet to tars; the shards are those of a run between local folders."""
    files = loose_files(photos)
    write_parquet(tmp_path / "parquet" / "0.parquet", {"key": list(files), "image": list(files.values())})
    undisturbed = to_shards(tiny_models, tmp_path / "parquet", tmp_path, "undisturbed", "tar")
    assert undisturbed.run() == 0, undisturbed.said
    (tmp_path / "weed").mkdir()
    with Weed.serving(tmp_path / "weed") as server, clients_of(server):
        archive = f"{server.bucket}/archive"
        storage.put_bytes(f"{archive}/0.parquet", (tmp_path / "parquet" / "0.parquet").read_bytes())
        job = to_shards(tiny_models, archive, tmp_path, "run", "tar")
        job.output, job.environment = f"{server.bucket}/run", server.environment
        know(job, server)
        faults = [
            Fault(point, victim="server", call=call) for point, call in (("read", 2), ("write", 2), ("commit", 3))
        ]
        code = job.run(faults=faults, while_running=lambda: start_again_after_each_kill(job, server, len(faults)))
        assert code == 0, job.said
        assert job.verified() == WHOLE
        assert job.reconstructions() == undisturbed.reconstructions()
        tell("kill -9 of the S3 server, Parquet to tars", "read, write, commit", job, undisturbed)
