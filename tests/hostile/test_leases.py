"""Leases of drivers in other containers, and with clocks that are wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashray.errors import FlashrayError
from flashray.pipeline import lease
from flashray.pipeline.lease import EXPIRES, Lease, held, latest
from flashray.pipeline.run_folder import RUN_FOLDER


def put(folder: Path, one: Lease) -> None:
    path = folder / RUN_FOLDER / "drivers" / f"{one.number:06d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(dataclasses.asdict(one)))
    path.with_suffix(".new").replace(path)


def in_a_container(**values: object) -> Lease:
    """A driver with the name of this machine, and a process number that is free here."""
    one = Lease(1, socket.gethostname(), 2**22 + 1, "7", time.time(), machine="this kernel pid:[1]")
    return dataclasses.replace(one, **values)  # type: ignore[arg-type]


@contextmanager
def renewed(folder: Path, one: Lease, ahead: float) -> Iterator[None]:
    """A driver that lives, by its own clock."""
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(0.02):
            put(folder, dataclasses.replace(one, renewed=time.time() + ahead))

    thread = threading.Thread(target=keep)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRES", 0.6)
    monkeypatch.setattr(lease, "RENEW", 0.2)


def test_row_09_a_driver_in_another_namespace_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRES", EXPIRES)
    for kept in (in_a_container(), in_a_container(machine=""), in_a_container(pid=os.getpid(), began="7")):
        put(tmp_path, kept)
        with pytest.raises(FlashrayError, match="another driver is at work"), held(str(tmp_path)):
            pass
        assert latest(str(tmp_path)) == kept
    put(tmp_path, in_a_container(machine=lease.machine()))  # in this namespace it is dead
    with held(str(tmp_path)):
        pass
    kernel, namespace = lease.machine().split(" ")
    assert len(kernel) == 36
    assert namespace == os.readlink("/proc/self/ns/pid")


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_row_09_and_21_a_living_driver_is_not_robbed_whatever_its_clock_says(tmp_path: Path, ahead: float) -> None:
    one = in_a_container(renewed=time.time() + ahead)
    put(tmp_path, one)
    with (
        renewed(tmp_path, one, ahead),
        pytest.raises(FlashrayError, match="another driver is at work"),
        held(str(tmp_path)),
    ):
        pass


def test_row_21_a_lease_of_the_future_holds_no_longer_than_any(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, in_a_container(renewed=time.time() + 10 * 365 * 86400))
    began = time.monotonic()
    with held(str(tmp_path)):
        assert time.monotonic() - began < 10
    assert "the clocks of" in caplog.text
    assert "s in the future" in caplog.text
    # of a driver of this machine that is dead, at once
    put(tmp_path, in_a_container(number=9, machine=lease.machine(), renewed=time.time() + 1e9))
    with held(str(tmp_path)):
        pass
