"""An S3 server in trouble: the job waits for a while, or ends with the reason, and the same command goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, Fault, Job
from tests.support.fault_s3 import (
    clients_of,
    job_on,
    know,
    small_disk,
    start_again_after_each_kill,
    thaw_after_each_stop,
)
from tests.support.seaweedfs import BUCKET, SECRET, Weed

pytestmark = pytest.mark.fault
WHOLE = Verified(images=IMAGES, restored=IMAGES)
# one of the plan pass's six reads, one of the solve pass's, and before the puts and the commits of other units
READ, READ_AGAIN, WRITE, COMMIT = ("read", 3), ("read", 8), ("write", 2), ("commit", 4)
IMPATIENT = {"FLASHRAY_S3_CONNECT_TIMEOUT": "1", "FLASHRAY_S3_REQUEST_TIMEOUT": "2", "FLASHRAY_S3_ATTEMPTS": "2"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Weed]:
    (tmp_path / "weed").mkdir()
    with Weed.serving(tmp_path / "weed") as server, clients_of(server):
        yield server


@pytest.fixture
def job(server: Weed, tiny_models: TinyModels, photos: Path, tmp_path: Path) -> Job:
    return job_on(server, tiny_models, photos, tmp_path)


def strikes(*places: tuple[str, int], kind: str = "SIGKILL") -> list[Fault]:
    return [Fault(point, victim="server", call=call, signal=kind) for point, call in places]


def whole(job: Job, undisturbed: Job) -> None:
    assert job.verified() == WHOLE
    assert job.reconstructions() == undisturbed.reconstructions()


def test_a_server_that_is_killed_and_comes_back(job: Job, server: Weed, undisturbed: Job, tell: Told) -> None:
    """The requests' own retries outlast it: the run does not stop."""
    faults = strikes(READ, READ_AGAIN, WRITE, COMMIT)
    code = job.run(faults=faults, while_running=lambda: start_again_after_each_kill(job, server, len(faults)))
    assert code == 0, job.said
    whole(job, undisturbed)
    tell("kill -9 of the S3 server, back at once", "read (both passes), write, commit", job)


def test_a_server_that_is_frozen_for_10_s(job: Job, server: Weed, undisturbed: Job, tell: Told) -> None:
    faults = strikes(READ, WRITE, COMMIT, kind="SIGSTOP")
    code = job.run(faults=faults, while_running=lambda: thaw_after_each_stop(job, server, len(faults), 10))
    assert code == 0, job.said
    whole(job, undisturbed)
    tell("S3 server frozen for 10 s", "read, write, commit", job)


def test_a_server_that_stays_away(job: Job, server: Weed, undisturbed: Job, tell: Told) -> None:
    """Each wait is bounded, and the message says what is away; with the server back the same command goes on."""
    job.environment = {**server.environment, **IMPATIENT}
    for place, kind in ((READ, "SIGKILL"), (WRITE, "SIGSTOP"), (COMMIT, "SIGKILL")):
        struck: list[float] = []

        def note(struck: list[float] = struck, before: int = job.strikes) -> None:
            job.wait_for(lambda: job.strikes > before)
            struck.append(time.monotonic())

        assert job.run(faults=strikes(place, kind=kind), while_running=note) == 1, job.said
        assert time.monotonic() - struck[0] < 90
        assert server.environment["AWS_ENDPOINT_URL"] in job.said[-1]
        assert "the same command goes on from there" in job.said[-1]
        assert server.process is not None
        if kind == "SIGKILL":
            server.process.wait(30)
            server.start()
            know(job, server)
        else:
            server.process.send_signal(signal.SIGCONT)
    assert job.run() == 0, job.said
    whole(job, undisturbed)
    tell("S3 server away for good", "read (killed), then write (hangs), then commit (killed)", job)


def test_wrong_credentials(job: Job, server: Weed, undisturbed: Job, tell: Told) -> None:
    """Exit code 2 before any work; midway, where they are withdrawn, 1. The message names what to correct."""
    job.environment = {**server.environment, "AWS_SECRET_ACCESS_KEY": "another"}
    assert job.run() == 2
    assert "refuses the credentials" in job.said[-1]
    assert "AWS_SECRET_ACCESS_KEY" in job.said[-1]

    def withdraw(before: int) -> None:
        job.wait_for(lambda: job.strikes > before)
        assert server.process is not None
        server.process.wait(30)
        server.secret = "withdrawn"
        server.start()

    job.environment = server.environment
    for place in (READ, COMMIT):
        before = job.strikes
        assert job.run(faults=strikes(place), while_running=lambda before=before: withdraw(before)) == 1, job.said
        assert any(words in job.said[-1] for words in ("refuses the credentials", "SignatureDoesNotMatch")), job.said
        assert "the same command goes on from there" in job.said[-1]
        server.stop()
        server.secret = SECRET
        server.start()
        know(job, server)
    assert job.run() == 0, job.said
    whole(job, undisturbed)
    tell("S3 credentials wrong", "start, then read, then commit", job)


def test_a_missing_bucket(job: Job, server: Weed, undisturbed: Job, tell: Told) -> None:
    """Refused before any work, with its name."""
    archive = job.archive
    for job.archive, job.output in ((archive, "s3://nowhere/run"), ("s3://nowhere/archive", f"{server.bucket}/run")):
        assert job.run() == 2
        assert "no bucket nowhere; create it, or correct its name" in job.said[-1]
    job.archive, job.output = archive, "s3://nowhere/run"
    server.client().create_bucket(Bucket="nowhere")
    assert job.run() == 0, job.said
    whole(job, undisturbed)
    tell("S3 bucket missing", "start", job)


def test_a_full_disk_of_the_server(
    tiny_models: TinyModels, photos: Path, tmp_path: Path, undisturbed: Job, tell: Told
) -> None:
    with small_disk(tmp_path / "disk", "300m") as disk, Weed.serving(disk) as server, clients_of(server):
        job = job_on(server, tiny_models, photos, tmp_path)
        job.environment = {**server.environment, "FLASHRAY_S3_ATTEMPTS": "3"}
        stopped_by_a_full_disk(job, disk, "PutObject", freed=lambda: start_anew(server), bucket=BUCKET)
        whole(job, undisturbed)
        tell("disk of the S3 server full, then freed and the server started anew", "write, then commit", job)


def test_a_full_disk_of_this_machine(job: Job, photos: Path, tmp_path: Path, undisturbed: Job, tell: Told) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        job = Job(job.models, str(photos), str(disk / "run"), tmp_path / "notes of local")
        stopped_by_a_full_disk(job, disk, "No space left on device")
        whole(job, undisturbed)
        tell("local disk full", "write, then commit", job)


def start_anew(server: Weed) -> None:
    """By itself it does not find out that its disk has space again: a file that once could not grow stays closed."""
    server.stop()
    server.start()


def stopped_by_a_full_disk(
    job: Job, disk: Path, words: str, freed: Callable[[], None] = lambda: None, bucket: str | None = None
) -> None:
    """Exit code 1 with the reason, at a put and at a commit; then there is space again, and the job ends well."""
    for point, call in (WRITE, COMMIT):
        assert job.run(faults=[Fault(point, victim="disk", call=call, disk=str(disk), bucket=bucket)]) == 1, job.said
        assert words in job.said[-1]
        assert "the same command goes on from there" in job.said[-1]
        (disk / "balloon").unlink()
        freed()
        assert job.verified().sound
    assert job.run() == 0, job.said
