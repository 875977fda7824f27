"""Thousands of tiny images on an S3 server, with a driver killed halfway: time, memory, and how they grow.

pytest -m slow tests/faults/test_scale.py      # prints, and writes build/faults/scale-N.txt
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from flashray import storage
from flashray.images import encode_png
from flashray.pipeline.commit import committed_units, read_commits, write_commit
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import TABLE
from tests.support.fault_harness import Job
from tests.support.fault_s3 import clients_of
from tests.support.seaweedfs import Weed

SIZE = 64  # pixels, of the photos; the tiny prior's are half of it
SETTINGS = {"solver.steps": 10, "severity_batch": 64, "unit_images": 64, "slots": 16}


@dataclass
class Peaks:
    """What a driver and its object store took at most, in bytes; polled, from /proc.

    Attributes:
        driver: resident memory of the driver's process.
        store: shared memory in use on this machine, beyond what was before.
    """

    driver: int = 0
    store: int = 0
    before: int = field(default_factory=lambda: shared_memory())
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self, job: Job) -> None:
        while not self.over.wait(0.5):
            driver = int((job.folder / "driver.pid").read_text())
            self.driver = max(self.driver, status(driver, "VmHWM"))
            self.store = max(self.store, shared_memory() - self.before)

    @classmethod
    @contextmanager
    def of(cls, job: Job) -> Iterator[Peaks]:
        peaks = cls()
        watcher = threading.Thread(target=peaks._watch_through_ends, args=(job,))
        watcher.start()
        try:
            yield peaks
        finally:
            peaks.over.set()
            watcher.join()

    def _watch_through_ends(self, job: Job) -> None:
        while not self.over.is_set():
            try:
                self.watch(job)
            except (FileNotFoundError, ProcessLookupError, ValueError):  # it has not begun, or has just ended
                time.sleep(0.1)


def status(process: int, name: str) -> int:
    """A line of /proc/PID/status, in bytes; 0 where a process that has ended has none."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def shared_memory() -> int:
    """Bytes in use of the file system that object stores are on."""
    disk = os.statvfs("/dev/shm")
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def state(process: int) -> str:
    """A letter; Z once it has ended."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def fill(archive: str, photo: torch.Tensor, count: int) -> None:
    """Crops of a photo, each a pixel beside another."""

    def put(i: int) -> None:
        top, left = divmod(i, 400)
        data = encode_png(photo[:, top : top + SIZE, left : left + SIZE])
        storage.put_bytes(f"{archive}/{i // 1000:03d}/{i:06d}.png", data)

    with ThreadPoolExecutor(8) as writers:
        list(writers.map(put, range(count)))


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("count", [2_000, 20_000])
def test_thousands_of_images_on_s3(tiny_models: TinyModels, photo: torch.Tensor, tmp_path: Path, count: int) -> None:
    (tmp_path / "weed").mkdir()
    with Weed.serving(tmp_path / "weed") as server, clients_of(server):
        archive, output = f"{server.bucket}/archive", f"{server.bucket}/run"
        found: dict[str, float] = {"images": count, "filling seconds": timed(lambda: fill(archive, photo, count))}
        job = Job(tiny_models, archive, output, tmp_path / "notes", SETTINGS, server.environment)
        job.patience = 5000

        def kill_halfway() -> None:
            driver = int((job.folder / "driver.pid").read_text())
            while len(job.reached("commit")) < count // 2:
                assert state(driver) != "Z", (job.folder / "stderr").read_text()
                time.sleep(1)
            os.kill(driver, signal.SIGKILL)

        with Peaks.of(job) as first:
            assert job.run("--plan_only") == 0, job.said
        found["plan seconds"] = job.seconds
        with Peaks.of(job) as second:
            assert job.run(while_running=kill_halfway) == -signal.SIGKILL
        found["seconds until the kill"] = job.seconds - found["plan seconds"]
        committed = len(RunStatus.read(output).results)
        before = job.seconds
        with Peaks.of(job) as third:
            assert job.run() == 0, job.said
        found["seconds of the resume"] = job.seconds - before
        found["committed at the kill"] = committed
        found["recomputed"] = job.cost().recomputed
        peaks = (first, second, third)
        found["driver peak MB"] = max(peak.driver for peak in peaks) / 1e6
        found["object store peak MB"] = max(peak.store for peak in peaks) / 1e6

        found["listing seconds"] = timed(lambda: storage.list_files(archive))
        units = committed_units(output)
        found["units"] = len(units)
        found["seconds to list the commits"] = timed(lambda: committed_units(output))
        found["seconds to read the commits"] = timed(lambda: read_commits(output, units))
        rows = read_commits(output, sorted(units)[:1]).drop(["unit_id"]).to_pylist()
        trial = f"{server.bucket}/trial"
        found["milliseconds of a commit"] = 10 * timed(lambda: [write_commit(trial, f"{i}", rows) for i in range(100)])
        began = time.perf_counter()
        assert job.verified() == Verified(images=count, restored=count)
        found["verify seconds"] = time.perf_counter() - began
    assert 0 < committed < count
    TABLE.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: round(value, 1) for name, value in found.items()}, indent=1)
    (TABLE / f"scale-{count}.txt").write_text(text)
    print(text)
