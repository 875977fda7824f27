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
from pathlib import Path

from flashray import storage
from flashray.build import strict
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import own_names

EXPIRES = 60.0  # seconds without renewal after which a driver counts as dead
RENEW = 15.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """The driver of a run folder: the content of the highest-numbered file in `drivers/`."""

    number: int  # one more than the previous lease
    host: str  # of the driver
    pid: int
    began: str  # distinguishes its process from a later one with the same pid
    renewed: float  # seconds since the epoch, by the driver's clock
    ended: bool = False  # whether the driver has given the lease back
    machine: str = ""  # where the pid means something (`machine`)

    @property
    def age(self) -> float:
        """Seconds since it was renewed, by this machine's clock; negative where the driver's is ahead."""
        return time.time() - self.renewed


@contextmanager
def held(output: str) -> Iterator[None]:
    """Hold the lease of a run folder for the duration of a block; FlashrayError when another driver is at work there.

    Of several drivers only one gets the lease, because it is a file that only one can create. (A driver that was frozen
    for longer than EXPIRES finds its lease taken and stops at its next renewal; until then it does no harm, because
    each unit has one commit, no matter which driver writes it.)
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
    names = own_names(run_uri(output, "drivers"), r"\d{6}\.json")
    if not names:
        return None
    uri = run_uri(output, "drivers", names[-1])
    try:
        return strict(Lease, json.loads(storage.read_bytes(uri)), uri)
    except (ValueError, RecursionError, ConfigError) as error:
        raise FlashrayError(f"{uri} is damaged ({error}); delete it if no driver is at work on {output}") from error


def machine() -> str:
    """The running kernel and the namespace of process numbers: containers share a name and even the kernel."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def living(output: str, lease: Lease) -> bool:
    """Whether the driver of a lease may be at work.

    A dead process of this machine is recognised at once. Any other driver is dead when it has been silent for EXPIRES.
    Its clock may be wrong: this waits, and looks, where the date is in the future, or so old that a driver whose clock
    is behind could still be renewing it.
    """
    if lease.ended:
        return False
    if lease.machine == machine():
        return lease.age <= EXPIRES and began(lease.pid) == lease.began
    if -RENEW <= lease.age <= EXPIRES:
        return True
    if lease.age < 0:
        log.warning(
            "the clocks of %s and of this machine differ: the lease of %s is dated %.0f s in the future",
            *(lease.host, output, -lease.age),
        )
    patience = EXPIRES if lease.age < 0 else 2 * RENEW
    log.warning("waiting %.0f s to see whether the driver on %s still renews its lease", patience, lease.host)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        time.sleep(min(1.0, patience / 10))
        if latest(output) != lease:
            return True
    return False


def began(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks; empty where there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else rest[18]


def take(output: str) -> Lease:
    """A lease of this process; FlashrayError when another driver is at work, ConfigError where none can be written."""
    before = latest(output)
    if before is not None and living(output, before):
        raise FlashrayError(
            f"another driver is at work on {output}: process {before.pid} on {before.host}, last heard of "
            f"{max(before.age, 0):.0f} s ago. Wait for it to end; one that died on another machine "
            f"is replaced {EXPIRES:.0f} s after it was last heard of"
        )
    number = 1 if before is None else before.number + 1
    mine = Lease(number, socket.gethostname(), os.getpid(), began(os.getpid()), time.time(), machine=machine())
    try:
        ours = storage.create_if_absent(_uri(output, number), _bytes(mine))
    except OSError as error:
        if before is None:  # the first that a run writes
            raise ConfigError(f"output {output} cannot be written to: {error}") from error
        raise
    if not ours:
        raise FlashrayError(f"another driver has just begun to work on {output}; wait for it to end")
    return mine


def renew(output: str, lease: Lease) -> bool:
    """Date the lease now; False, and nothing else, where another driver has taken over."""
    now = latest(output)
    if now is not None and now.number > lease.number:
        return False
    _put(output, replace(lease, renewed=time.time()))
    return True


def _keep(output: str, lease: Lease, stop: threading.Event) -> None:
    while not stop.wait(RENEW):
        try:
            if not renew(output, lease):
                log.error("another driver took over %s, because this one did not renew its lease; stopping", output)
                os.kill(os.getpid(), signal.SIGTERM)  # a script's background processes ignore SIGINT
                return
        except (OSError, FlashrayError) as error:
            log.warning("the lease of %s could not be renewed: %s", output, storage.redact(str(error)))


def _put(output: str, lease: Lease) -> None:
    storage.put_bytes(_uri(output, lease.number), _bytes(lease))


def _uri(output: str, number: int) -> str:
    return run_uri(output, "drivers", f"{number:06d}.json")


def _bytes(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()
