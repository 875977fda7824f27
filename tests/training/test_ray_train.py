"""Training on Ray Train as users start it: each test runs the command in a process, and so in a cluster, of its own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashray import storage
from flashray.images import encode_png
from flashray.severity import load_severity_encoder
from flashray.training import launch
from flashray.training.loop import LoopConfig
from tests.support.models import SIDE, dc, save_pipeline

ROOT = Path(__file__).parents[2]
PHOTOS, BATCH, WORKERS = 24, 4, 2
STEPS = PHOTOS // (BATCH * WORKERS)  # an epoch


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, photo: Tensor) -> Path:
    """A folder with a tiny prior and photos."""
    folder = tmp_path_factory.mktemp("models")
    save_pipeline(folder / "prior", dc())
    for n in range(PHOTOS + 4):
        place = folder / ("train" if n < PHOTOS else "val") / f"{n:02d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encode_png(photo[:, 15 * n : 15 * n + 40, 17 * n % 400 : 17 * n % 400 + 40]))
    return folder


@dataclass(frozen=True)
class Process:
    """A process of Linux; the time of its start tells it from a later one with the same number."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        return any(one == self for one, _ in running([self.pid]))

    def command(self) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""


def running(pids: Iterable[int]) -> Iterator[tuple[Process, int]]:
    """Those that run, with their parents' numbers."""
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                yield Process(pid, fields[19]), int(fields[1])


def processes_below(root: int) -> list[Process]:
    parents = dict(running(int(path.name) for path in Path("/proc").glob("[0-9]*")))
    found, level = [], [root]
    while level:
        children = [one for one, parent in parents.items() if parent in level]
        found, level = found + children, [one.pid for one in children]
    return found


class Training:
    """`jobs/train_severity.py` in a process group of its own; whatever of it is left is ended at the end."""

    def __init__(self, models: Path, folder: Path, store: str, *options: str) -> None:
        self.output, self.log_path = folder / "encoder", folder / f"log-{time.monotonic_ns()}.txt"
        arguments = {
            "photos": models / "train",
            "val_photos": models / "val",
            "output": self.output,
            "prior": models / "prior",
            "severity.crop": SIDE,
            "loop.batch_size": BATCH,
            "launch.workers": WORKERS,
            "launch.device": "cpu",
            "launch.storage": store,
        }
        flags = [f"--{name}={value}" for name, value in arguments.items()]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"PYTHONPATH": str(ROOT), "RAY_DEDUP_LOGS": "0", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "jobs" / "train_severity.py"), *flags, *options]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        self.seen: dict[Process, None] = {}

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def progress(self) -> list[tuple[int, int]]:
        """(epoch, step) of every line of progress so far; Ray Train may print a worker's line twice in a row."""
        lines = re.findall(r"severity-gaussian_blur\S*: .*?epoch (\d+) step (\d+) seconds (\S+)", self.log())
        return [(int(epoch), int(step)) for (epoch, step, _), _ in itertools.groupby(lines)]

    def watch(self) -> list[Process]:
        """Every process that was seen below the command so far."""
        self.seen |= dict.fromkeys(processes_below(self.process.pid))
        return list(self.seen)

    def workers(self) -> list[Process]:
        return [one for one in self.watch() if one.is_alive() and "RayTrainWorker" in one.command()]

    def wait_for_epoch(self, epoch: int) -> None:
        deadline = time.monotonic() + 240
        while not any(seen >= epoch for seen, _ in self.progress()):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def finish(self) -> None:
        code = self.process.wait(400)
        assert code == 0, self.log()

    def end(self) -> None:
        self.watch()
        if self.process.poll() is None:
            self.process.terminate()
        deadline = time.monotonic() + 20  # a cluster ends with its driver
        while any(one.is_alive() for one in self.seen) and time.monotonic() < deadline:
            time.sleep(0.1)
        for one in self.seen:
            if one.is_alive():
                os.kill(one.pid, signal.SIGKILL)
        self.process.wait(15)


@pytest.fixture
def start(models: Path, tmp_path: Path) -> Iterator[functools.partial[Training]]:
    """Starts trainings in this test's folder."""
    started: list[Training] = []

    def starting(*arguments: str) -> Training:
        started.append(Training(models, tmp_path, *arguments))
        return started[-1]

    yield functools.partial(starting)
    for training in started:
        training.end()


@pytest.mark.slow
def test_two_workers_train_an_encoder_with_checkpoints_at_a_uri(start, tmp_path: Path):
    store = tmp_path / "checkpoints of mine"
    training = start(f"file://{store}", "--loop.epochs=2")
    training.finish()
    assert training.progress() == [(1, STEPS), (2, 2 * STEPS)]  # each photo once an epoch, shared by the workers
    assert load_severity_encoder(str(training.output)).degradation == "gaussian_blur"
    (run,) = store.iterdir()
    assert sorted(path.name for path in run.glob("epoch_*")) == ["epoch_00001", "epoch_00002"]
    assert (run / "epoch_00002" / "state.pt").is_file()
    assert (training.output / "README.md").is_file()


@pytest.mark.slow
def test_a_time_limit_stops_all_workers_at_the_same_step(start, tmp_path: Path):
    """Each worker's own clock would leave one of them waiting for the others' gradients for ever."""
    training = start(
        str(tmp_path / "store"), "--loop.epochs=100000", "--loop.seconds=6", "--loop.validate_every=100000"
    )
    training.finish()
    ((epoch, step),) = training.progress()
    assert epoch < 100_000
    assert step > STEPS


@pytest.mark.slow
def test_the_state_before_a_cooldown_is_kept_and_another_training_goes_on_from_it(start, tmp_path: Path):
    """Its one epoch is known to have three steps: the second is past the half."""
    store = tmp_path / "store"
    cooling = ("--loop.epochs=1", "--loop.decay=cooldown", "--loop.cooldown=0.5", "--loop.warmup_steps=0")
    start(f"file://{store}", *cooling).finish()
    (run,) = store.iterdir()
    state = torch.load(run / "constant" / "state.pt", weights_only=True)
    assert (state["step"], state["batches_per_epoch"]) == (2, STEPS)
    longer = start("store", *cooling, f"--loop.go_on=store/{run.name}/constant", "--loop.learning_rate=0")
    longer.finish()  # from a relative path, though its workers run elsewhere
    (other,) = set(store.iterdir()) - {run}
    after = torch.load(other / "epoch_00001" / "state.pt", weights_only=True)
    assert all(torch.equal(after["model"][name], value) for name, value in state["model"].items())


@pytest.mark.fault
def test_a_killed_worker_is_replaced_and_training_completes(start, tmp_path: Path):
    training = start(str(tmp_path / "store"), "--loop.epochs=10")
    training.wait_for_epoch(3)
    workers = training.workers()
    assert len(workers) == WORKERS
    os.kill(workers[-1].pid, signal.SIGKILL)
    training.finish()
    epochs, steps = zip(*training.progress(), strict=True)
    assert set(epochs) == set(range(1, 11))
    assert epochs.count(1) == 1  # it did not begin again
    assert len(epochs) <= 10 + 2  # what was not yet committed is done twice
    assert all(step == STEPS * epoch for epoch, step in zip(epochs, steps, strict=True))
    assert load_severity_encoder(str(training.output)).degradation == "gaussian_blur"


@pytest.mark.fault
def test_the_same_command_resumes_after_a_killed_driver_from_object_storage(start, s3: str):
    store = storage.join(s3, "training")
    first = start(store, "--loop.epochs=8")
    first.wait_for_epoch(4)
    first.watch()
    first.process.kill()
    first.end()
    reached = max(epoch for epoch, _ in first.progress())
    assert reached < 8
    second = start(store, "--loop.epochs=8")
    second.finish()
    epochs = [epoch for epoch, _ in second.progress()]
    assert epochs == list(range(epochs[0], 9))
    assert reached - 2 <= epochs[0] - 1 <= reached  # at most the epochs whose checkpoint was under way are lost
    assert epochs[0] > 1
    assert second.progress()[-1] == (8, 8 * STEPS)
    weights = (second.output / "diffusion_pytorch_model.safetensors").read_bytes()
    third = start(store, "--loop.epochs=8")
    third.finish()
    assert third.progress() == []  # finished: nothing is trained again
    assert (third.output / "diffusion_pytorch_model.safetensors").read_bytes() == weights


def build_something(value: int) -> None:
    raise AssertionError


def test_a_trainings_name_is_the_same_in_every_process_and_differs_by_its_settings():
    code = (
        "import functools; from flashray.training import launch, loop;"
        "build = functools.partial(launch.device_here, 'x');"
        "print(launch.fingerprint(build, loop.LoopConfig(epochs=3), 'photos'))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    theirs = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip()
    assert theirs == launch.fingerprint(functools.partial(launch.device_here, "x"), LoopConfig(epochs=3), "photos")
    build = functools.partial(build_something, 1)
    base = launch.fingerprint(build, LoopConfig(), "photos")
    others = [
        launch.fingerprint(functools.partial(build_something, 2), LoopConfig(), "photos"),
        launch.fingerprint(build, LoopConfig(epochs=7), "photos"),
        launch.fingerprint(build, LoopConfig(), "other"),
        launch.fingerprint(build_something, LoopConfig(), "photos"),  # type: ignore[arg-type]
    ]
    assert len({base, *others}) == 5
