"""An S3 server of a test's own, to be killed, frozen, misconfigured and filled."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashray import storage
from flashray.storage import s3
from tests.conftest import TinyModels
from tests.support.fault_harness import Job
from tests.support.seaweedfs import Weed


@contextmanager
def clients_of(server: Weed) -> Iterator[None]:
    """This process's own reads and writes go to the server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3.forget()
        yield
    s3.forget()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def job_on(server: Weed, models: TinyModels, photos: Path, folder: Path) -> Job:
    """Reads its photos from the server, and writes to it."""
    for path in photos.iterdir():
        storage.put_bytes(f"{server.bucket}/archive/{path.name}", path.read_bytes())
    job = Job(models, f"{server.bucket}/archive", f"{server.bucket}/run", folder / "notes")
    job.environment = server.environment
    know(job, server)
    return job


def know(job: Job, server: Weed) -> None:
    """Let the job's faults strike the server's process."""
    assert server.process is not None
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "server.pid").write_text(str(server.process.pid))


def start_again_after_each_kill(job: Job, server: Weed, kills: int) -> None:
    for kill in range(1, kills + 1):
        job.wait_for(lambda: job.strikes >= kill)  # noqa: B023
        assert server.process is not None
        server.process.wait(30)
        server.start()
        know(job, server)


def thaw_after_each_stop(job: Job, server: Weed, stops: int, seconds: float) -> None:
    for stop in range(1, stops + 1):
        job.wait_for(lambda: job.strikes >= stop)  # noqa: B023
        time.sleep(seconds)
        assert server.process is not None
        server.process.send_signal(signal.SIGCONT)
