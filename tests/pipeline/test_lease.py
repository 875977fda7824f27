"""One driver at a time: who holds a run directory, and when it may be taken from a driver."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashray.errors import FlashrayError
from flashray.pipeline import lease
from flashray.pipeline.lease import EXPIRES, Lease, began, held, latest, living, machine
from flashray.pipeline.run_folder import RUN_FOLDER

HOLDER = """
import sys, time
from flashray.pipeline.lease import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another driver that holds the folder."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def put(folder: Path, one: Lease) -> None:
    drivers = folder / RUN_FOLDER / "drivers"
    drivers.mkdir(parents=True, exist_ok=True)
    (drivers / f"{one.number:06d}.json").write_text(json.dumps(dataclasses.asdict(one)))


def elsewhere(**values: object) -> Lease:
    return dataclasses.replace(Lease(3, "another-machine", 1, "5", time.time()), **values)  # type: ignore[arg-type]


def test_a_lease_ends_with_its_block_and_the_next_is_a_new_one(tmp_path: Path):
    for number in (1, 2):
        with held(str(tmp_path)):
            found = latest(str(tmp_path))
            assert found is not None
            assert (found.number, found.pid, living(str(tmp_path), found)) == (number, os.getpid(), True)
        found = latest(str(tmp_path))
        assert found is not None
        assert not living(str(tmp_path), found)


def test_a_second_driver_is_refused_by_name_until_the_first_is_dead(tmp_path: Path, other: subprocess.Popen[str]):
    with (
        pytest.raises(FlashrayError, match=f"another driver is at work on .*: process {other.pid} on "),
        held(str(tmp_path)),
    ):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(str(tmp_path)):  # at once: its process is gone
        pass


def test_a_driver_of_another_machine_is_believed_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW", 0.1)
    put(tmp_path, elsewhere())
    with pytest.raises(FlashrayError, match="on another-machine"), held(str(tmp_path)):
        pass
    put(tmp_path, elsewhere(renewed=time.time() - EXPIRES - 1))
    with held(str(tmp_path)):
        pass
    put(tmp_path, elsewhere(number=9, ended=True))
    with held(str(tmp_path)):
        pass


def test_another_process_of_the_same_number_is_not_the_driver(tmp_path: Path):
    put(tmp_path, dataclasses.replace(elsewhere(), machine=machine(), pid=os.getpid(), began="1"))
    with held(str(tmp_path)):
        pass
    assert began(os.getpid()).isdigit()
    assert began(2**22 + 1) == ""  # beyond the largest number of a process


def test_of_many_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "latest", lambda output: None)  # all have looked before any takes it
    got: list[str] = []
    together = threading.Barrier(6)

    def drive() -> None:
        together.wait()
        try:
            lease.take(str(tmp_path))
            got.append("held")
        except FlashrayError:
            got.append("refused")

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["held", *["refused"] * 5]


def test_a_lease_is_renewed_and_one_that_was_taken_over_stops_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "RENEW", 0.02)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as jobs/reconstruct.py has it

    def drive() -> None:
        with held(str(tmp_path)):
            first = latest(str(tmp_path))
            assert first is not None
            wait_until(lambda: latest(str(tmp_path)).renewed > first.renewed)  # type: ignore[union-attr]
            put(tmp_path, elsewhere(number=2))
            time.sleep(20)  # the keeper interrupts it

    try:
        with pytest.raises(SystemExit, match="143"):
            drive()
    finally:
        signal.signal(signal.SIGTERM, before)
    found = latest(str(tmp_path))
    assert found is not None
    assert (found.number, found.ended) == (2, False)


def wait_until(done) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)
