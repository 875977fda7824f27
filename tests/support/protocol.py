"""A run's protocol without images and Ray: drivers over a store in memory, one step a store operation, in any order.

Drivers use the product's own lease, records, plans, commits and checks. A schedule is a seed: it decides who makes the
next step, who is killed or frozen, and what time it is. Nothing else is random, so that a seed says everything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flashray import storage
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline import commit, damage, lease, run_record, run_tables
from flashray.pipeline import open_run as open_run_module
from flashray.pipeline.archive import LISTING, Archive
from flashray.pipeline.clean import clean
from flashray.pipeline.commit import write_commit
from flashray.pipeline.open_run import Run
from flashray.pipeline.plan import SEVERITY, finish_plan, write_plan
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.units import gather, index
from flashray.pipeline.verify import verify
from flashray.tracking import TrackingConfig
from tests.support.plans import schedule as noise_schedule
from tests.support.runs import config_of

OUT = "/memory/out"
STEPS = 4_000  # of a schedule; a longer one hangs


class Killed(BaseException):
    """The process is gone."""


class Task(threading.Thread):
    """A process, or a worker that may outlive its driver: runs from one store operation to the next."""

    def __init__(self, world: World, name: str, work: Callable[[Task], None], driver: Task | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self.world, self.work, self.driver = world, work, driver
        self.turn, self.killed, self.over = threading.Lock(), False, False
        self.turn.acquire()
        self.lease: lease.Lease | None = None
        self.renewed = self.frozen_until = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        self.turn.acquire()
        try:
            if not self.killed:
                self.work(self)
        except Killed:
            pass
        except Exception as error:
            self.error = error
        self.over = True
        self.world.back.release()

    def pause(self) -> None:
        """Let the others go on, until it is this one's turn; it may never be again."""
        if self.killed:
            raise Killed
        self.world.back.release()
        self.turn.acquire()
        if self.killed:
            raise Killed


class World:
    """The store, the clock, and the order of steps.

    Args:
        conditional: whether the store has create-if-absent; otherwise it is a look and a put.
    """

    def __init__(self, seed: int, conditional: bool = True) -> None:
        self.chance, self.conditional = random.Random(seed), conditional
        self.files: dict[str, bytes] = {}
        self.now = 1_000_000.0
        self.back = threading.Lock()
        self.back.acquire()
        self.tasks: list[Task] = []
        self.log: list[str] = []
        self.broken: list[str] = []

    # what takes the place of flashray.storage

    def step(self, what: str, uri: str) -> None:
        task = threading.current_thread()
        if isinstance(task, Task):
            task.pause()
            self.log.append(f"{task.name} {what} {uri.removeprefix(OUT)}")
            written = what not in ("read", "list", "exists")
            holder = task.driver or task
            if written and "/drivers/" not in uri and holder.lease is None:
                self.broken.append(f"{task.name} wrote {uri} without a lease")

    def put_bytes(self, uri: str, data: bytes, modified_ns: int | None = None) -> None:
        self.step("put", uri)
        self.files[uri] = data

    def create_if_absent(self, uri: str, data: bytes) -> bool:
        if not self.conditional:
            self.step("exists", uri)
            if uri in self.files:
                return self.files[uri] == data
        self.step("create", uri)
        if self.conditional and uri in self.files:
            return self.files[uri] == data
        self.files[uri] = data
        return True

    def read_bytes(self, uri: str) -> bytes:
        self.step("read", uri)
        if uri not in self.files:
            raise FileNotFoundError(uri)
        return self.files[uri]

    def list_files(self, uri: str) -> list[storage.Entry]:
        self.step("list", uri)
        prefix = uri.rstrip("/") + "/"
        found = [(name, data) for name, data in self.files.items() if name.startswith(prefix)]
        return sorted((storage.Entry(n.removeprefix(prefix), len(d)) for n, d in found), key=lambda one: one.key)

    def exists(self, uri: str) -> bool:
        self.step("exists", uri)
        return any(name == uri or name.startswith(uri + "/") for name in self.files)

    def delete(self, uri: str) -> None:
        self.step("delete", uri)
        for name in [name for name in self.files if name == uri or name.startswith(uri + "/")]:
            del self.files[name]

    def creates_if_absent(self, uri: str) -> bool:
        return self.conditional

    def half_written(self, uri: str) -> list[str]:
        return []

    # what takes the place of the module time in flashray.pipeline.lease

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while isinstance(threading.current_thread(), Task) and self.now < until:
            self.step("list", "sleep")
        self.now = max(self.now, until)

    # the order of steps

    def start(self, name: str, work: Callable[[Task], None], driver: Task | None = None) -> Task:
        task = Task(self, name, work, driver)
        self.tasks.append(task)
        task.start()
        return task

    def advance(self, task: Task) -> None:
        task.turn.release()
        assert self.back.acquire(timeout=60), f"{task.name} does not come back"

    def kill(self, task: Task) -> None:
        task.killed = True
        if not task.over:
            self.advance(task)
        task.join()

    def run(self, keep: Callable[[], None] = lambda: None) -> None:
        """Steps until every task is over."""
        for _ in range(STEPS):
            keep()
            ready = [task for task in self.tasks if not task.over and task.frozen_until <= self.now]
            if not ready:
                waiting = [task.frozen_until for task in self.tasks if not task.over]
                if not waiting:
                    return
                self.now = min(waiting)
                continue
            self.now += self.chance.random()
            self.advance(self.chance.choice(ready))
        raise AssertionError("the schedule does not end")


def bytes_of(key: str) -> bytes:
    return f"the restored {key}".encode()


class Stub:
    """Models whose weights never change."""

    registered = None
    pinned: Mapping[str, str] = MappingProxyType({})

    def identity(self) -> dict[str, Any]:
        return {"recipe.seed": 0}


def listing(images: int) -> pa.Table:
    rows = [{"index": i, "key": f"k{i}.png", "uri": f"/a/k{i}.png", "size": 1} for i in range(images)]
    return pa.Table.from_pylist(rows, schema=LISTING)


def open_run(config: RunConfig, images: pa.Table) -> Run:
    """`open_run.open_run` without models and archive."""
    status = RunStatus.read(OUT)
    failed = set(status.failures["key"].to_pylist())
    models: Any = Stub()
    record = run_record.examine(config, models.identity(), images, failed)
    return Run(config, models, Archive(images), status, record, 0.0)


def drive(world: World, task: Task, images: pa.Table, unit_images: int, failing: frozenset[str]) -> None:
    """One start, as `run.restore_archive`.

    Args:
        unit_images: images of a unit: another machine plans other units.
        failing: keys that cannot be read at this start.
    """
    config = config_of("/a", OUT, unit_images=unit_images, slots=1, tracking=TrackingConfig(enabled=False))
    run = open_run(config, images)
    if run.nothing_to_do:
        return
    task.lease = lease.take(OUT)
    task.renewed = world.now
    run.open_record()
    if len(run.unplanned):
        sound = {"status": "ok", "sigma_hat": 0.3, "window_sigma": [0.3], "windows": 1, "pixels": 32 * 32}
        rows = [
            {name: row[name] for name in ("index", "key", "uri")}
            | ({"status": "error", "error": "torn"} if row["key"] in failing else sound)
            for row in run.unplanned.to_pylist()
        ]
        found = pa.Table.from_pylist(rows, schema=SEVERITY)
        write_plan(OUT, run.status.attempts, finish_plan(found, noise_schedule(), config, run.status.attempts))
        run.read_status()
    storage.delete(f"{OUT}/_flashray/summary.json")
    units = gather(run.status.pending, index(run.status.pending), ["key"]).to_pylist()
    workers = [world.start(f"{task.name}w{i}", lambda _, u=unit: solve(u), task) for i, unit in enumerate(units)]
    while not all(worker.over for worker in workers):
        world.step("list", "wait")
    run.read_status()
    if len(run.status.pending):
        raise FlashrayError("images are not committed")
    storage.put_bytes(f"{OUT}/_flashray/summary.json", b"{}")
    storage.put_bytes(
        f"{OUT}/_flashray/drivers/{task.lease.number:06d}.json",
        lease._bytes(dataclasses.replace(task.lease, renewed=world.now, ended=True)),
    )


def solve(unit: dict[str, Any]) -> None:
    """A worker: the unit's images, then its commit."""
    rows = []
    for key in unit["key"]:
        data = bytes_of(key)
        storage.put_bytes(f"{OUT}/{key}", data)
        rows.append({"key": key, "status": "ok", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)})
    write_commit(OUT, unit["unit_id"], rows)


class Arrow:
    """In place of pyarrow.parquet: the same tables, written and read ten times as fast."""

    @staticmethod
    def write_table(table: pa.Table, sink: Any) -> None:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    @staticmethod
    def read_table(source: Any) -> pa.Table:
        return pa.ipc.open_stream(source.read()).read_all()


class Inline:
    """In place of a pool of threads: a step belongs to the task that makes it."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, work: Callable[..., Any], *values: Any) -> Any:
        return map(work, *values)


@contextmanager
def in_memory(world: World) -> Iterator[None]:
    names = ("put_bytes", "create_if_absent", "read_bytes", "list_files", "exists", "delete", "creates_if_absent")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*names, "half_written"):
            patch.setattr(storage, name, getattr(world, name))
        patch.setattr(run_tables, "pq", Arrow)
        # functools.cached_property holds a lock while it computes, and a task may be frozen meanwhile
        patch.setattr(RunStatus, "results", property(RunStatus.__dict__["results"].func))
        for module in (commit, damage):
            patch.setattr(module, "ThreadPoolExecutor", Inline)
        patch.setattr(lease, "time", world)
        patch.setattr(lease, "machine", lambda: threading.current_thread().name)
        patch.setattr(lease.log, "disabled", True)
        for module in (run_record, open_run_module):
            patch.setattr(module.log, "disabled", True)
        yield


def explore(seed: int, conditional: bool = True, drivers: int = 2, starts: int = 5) -> World:
    """One schedule: drivers that start, are killed, frozen and started again, until one ends; then the check.

    Raises:
        AssertionError: when an image is lost, doubled, of other bytes, or something was hidden.
    """
    world = World(seed, conditional)
    chance = world.chance
    images = listing(chance.randint(1, 6))
    left = starts
    with in_memory(world):

        def keep() -> None:
            nonlocal left
            living = [task for task in world.tasks if not task.over and task.driver is None]
            if len(living) < drivers and left:
                left -= 1
                size, name = chance.randint(1, 4), f"d{starts - left}"
                torn = frozenset(key for key in images["key"].to_pylist() if chance.random() < 0.05)
                world.start(name, lambda task, s=size, t=torn: drive(world, task, images, s, t))
            for task in living:
                late = task.lease is not None and world.now - task.renewed > lease.RENEW
                if late and task.frozen_until <= world.now and chance.random() < 0.2:  # its other threads may be first
                    renew(world, task)
                if chance.random() < 0.03:
                    task.frozen_until = world.now + chance.choice((1.0, 20.0, 200.0))  # its workers go on
                elif chance.random() < 0.03:
                    end(world, task)
            if chance.random() < 0.01:
                world.now += 100.0

        world.run(keep)
        for task in world.tasks:
            allowed = (FlashrayError, Killed) if conditional or drivers == 1 else (FlashrayError,)
            if task.error is not None and (isinstance(task.error, ConfigError) or not isinstance(task.error, allowed)):
                if conditional or drivers == 1:
                    raise AssertionError(f"seed {seed}: {task.name} ended by {task.error!r}") from task.error
                return world  # two drivers on a store that cannot tell them apart: noticed, and said
        check(world, images, noticed=() if conditional or drivers == 1 else ConfigError)
    return world


def renew(world: World, task: Task) -> None:
    """The keeper of a lease; its steps are not interrupted, the driver's are."""
    assert task.lease is not None
    if lease.renew(OUT, task.lease):
        task.renewed = world.now
    else:
        end(world, task)


def end(world: World, task: Task) -> None:
    """A driver is killed; each of its workers dies with it, or goes on for a while."""
    world.kill(task)
    for worker in [one for one in world.tasks if one.driver is task and not one.over]:
        if world.chance.random() < 0.5:
            world.kill(worker)


def check(world: World, images: pa.Table, noticed: type[Exception] | tuple[type[Exception], ...] = ()) -> None:
    """A last start, on files of which some were deleted or cut; then every image is there once, with its bytes.

    Args:
        noticed: an error that is allowed to end the last start, because it says what the store could not prevent: two
            drivers have both created a plan.
    """
    assert not world.broken, world.broken
    chance, keys = world.chance, images["key"].to_pylist()
    for name in [f"{OUT}/{key}" for key in keys if f"{OUT}/{key}" in world.files]:
        if chance.random() < 0.15:
            world.files.pop(name) if chance.random() < 0.5 else world.files.update({name: b""})
    world.now += 1_000.0
    world.start("last", lambda task: drive(world, task, images, chance.randint(1, 4), frozenset()))
    world.run()
    last = world.tasks[-1] if world.tasks[-1].driver is None else next(t for t in world.tasks if t.name == "last")
    if isinstance(last.error, noticed):
        assert all(world.files.get(f"{OUT}/{key}") in (None, b"", bytes_of(key)) for key in keys)
        return
    if last.error is not None:
        raise AssertionError(f"the last start ended by {last.error!r}") from last.error
    status = RunStatus.read(OUT)
    results = status.results.to_pylist()
    failed = status.failures["key"].to_pylist()
    assert sorted([row["key"] for row in results] + failed) == sorted(keys)
    for row in results:
        data = world.files[f"{OUT}/{row['key']}"]
        assert data == bytes_of(row["key"])
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
    found = verify(OUT)
    assert found.sound, found
    assert not found.pending
    clean(OUT)
    assert {f"{OUT}/{row['key']}" for row in results} <= set(world.files)
    assert np.all([name.startswith(f"{OUT}/") for name in world.files])
