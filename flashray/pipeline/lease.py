"""One driver for a run folder: a lease, renewed while its driver lives and taken over when the driver is dead."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from flashray import storage
from flashray.errors import FlashrayError
from flashray.pipeline.run_folder import run_uri

EXPIRES = 60.0  # seconds without renewal after which a driver counts as dead
RENEW = 15.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The driver of a run folder: the content of the highest-numbered file in `drivers/`.

    Attributes:
        number: one more than the previous lease.
        host, pid, began: of the driver; `began` distinguishes its process from a later one with the same pid.
        renewed: seconds since the epoch, by the driver's clock.
        ended: whether the driver has given the lease back.
    """

    number: int
    host: str
    pid: int
    began: str
    renewed: float
    ended: bool = False

    @property
    def alive(self) -> bool:
        """Whether its driver may still be working. On the same machine a dead process is recognised at once."""
        if self.ended or time.time() - self.renewed > EXPIRES:
            return False
        return self.host != socket.gethostname() or began(self.pid) == self.began


@contextmanager
def held(output: str) -> Iterator[None]:
    """Hold the lease of a run folder for the duration of a block.

    Of several drivers only one gets the lease, because it is a file that only one can create. (A driver that was frozen
    for longer than EXPIRES finds its lease taken and stops at its next renewal; until then it does no harm, because
    each unit has one commit, no matter which driver writes it.)

    Raises:
        FlashrayError: when another driver is at work there.
    """
    lease = take(output)
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(output, lease, stop), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        try:
            _put(output, replace(lease, renewed=time.time(), ended=True))
        except OSError as error:  # the lease expires anyway
            log.warning("the lease of %s could not be given back: %s", output, storage.redact(str(error)))


def latest(output: str) -> Lease | None:
    """The current lease, or None where there never was one."""
    files = [entry.key for entry in storage.list_files(run_uri(output, "drivers"))]
    if not files:
        return None
    return Lease(**json.loads(storage.read_bytes(run_uri(output, "drivers", files[-1]))))


def began(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks; empty where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *rest = file.read().rpartition(")")[2].split()
    except OSError:
        return "" if os.path.isdir("/proc/self") else _alive(pid)
    return "" if state == "Z" else rest[18]


def _alive(pid: int) -> str:
    """For machines without /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "alive"


def take(output: str) -> Lease:
    """A lease of this process; FlashrayError when another driver is at work."""
    before = latest(output)
    if before is not None and before.alive:
        raise FlashrayError(
            f"another driver is at work on {output}: process {before.pid} on {before.host}, last heard of "
            f"{max(time.time() - before.renewed, 0):.0f} s ago. Wait for it to end; one that died on another machine "
            f"is replaced {EXPIRES:.0f} s after it was last heard of"
        )
    number = 1 if before is None else before.number + 1
    mine = Lease(number, socket.gethostname(), os.getpid(), began(os.getpid()), time.time())
    if not storage.create_if_absent(_uri(output, number), _bytes(mine)):
        raise FlashrayError(f"another driver has just begun to work on {output}; wait for it to end")
    return mine


def _keep(output: str, lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(RENEW):
        try:
            now = latest(output)
            if now is not None and now.number > lease.number:
                log.error("another driver took over %s, because this one did not renew its lease; stopping", output)
                _interrupt()
                return
            _put(output, replace(lease, renewed=time.time()))
        except (OSError, ValueError) as error:
            log.warning("the lease of %s could not be renewed: %s", output, storage.redact(str(error)))


def _interrupt() -> None:
    """End the driver with SIGTERM; processes that a script starts in the background ignore SIGINT."""
    os.kill(os.getpid(), signal.SIGTERM)


def _put(output: str, lease: Lease) -> None:
    storage.put_bytes(_uri(output, lease.number), _bytes(lease))


def _uri(output: str, number: int) -> str:
    return run_uri(output, "drivers", f"{number:06d}.json")


def _bytes(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()
