"""Runs that are disturbed at an exact place: real processes, real signals, and what it cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashray.pipeline.verify import Verified, verify
from tests.conftest import TinyModels
from tests.support.models import IMAGES as IMAGES
from tests.support.runs import record, restored

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
PLAIN_RECIPE = Path(__file__).parent / "plain_recipe.yaml"


@dataclass(frozen=True)
class Fault:
    """What happens: `signal` to `victim` at the `call`-th call of `point`, or at each that has the `poison` image.

    Attributes:
        point: of `hook/sitecustomize.py`: read, severity, solve, write (before any put), commit (after the last).
        victim: worker (the process that is at the point), driver, or another name whose process is in `NAME.pid`.
        disk: a folder whose disk is filled, instead of a signal.
        bucket: of the S3 server on that disk, which is given objects until it takes none: what it has begun to write
            to has room for a few more.
        after: a point that must have returned once before the strike; the process that is at `point` waits for it.
    """

    point: str
    victim: str = "worker"
    call: int = 1
    poison: str | None = None
    signal: str = "SIGKILL"
    disk: str | None = None
    bucket: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Cost:
    """A row of the fault table.

    Attributes:
        kills: how often the fault struck.
        recomputed: images whose chain was begun again.
        estimated_again: images that the severity encoder saw again.
    """

    images: int
    kills: int
    lost: int
    duplicated: int
    recomputed: int
    estimated_again: int
    seconds: float


@dataclass
class Job:
    """A command that restores an archive with the tiny models, and what its starts did.

    Attributes:
        folder: for its notes, and the hook's.
        settings: beyond those of all jobs.
        log: what the points were called for, in all processes.
        codes, said: exit code and standard error of each start.
        seconds: of all starts together.
        patience: seconds that a start may take.
    """

    models: TinyModels
    archive: str
    output: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0
    patience: float = 400

    @property
    def arguments(self) -> list[str]:
        return arguments(self.models, self.archive, self.output, **self.settings)

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "jobs" / "reconstruct.py"), *self.arguments]

    @property
    def environment_of_driver(self) -> dict[str, str]:
        path = os.pathsep.join([str(HOOK), str(ROOT)])
        # beside other work a run would hardly get on with workers that give way, and threads that wait by spinning
        polite = {"RAY_worker_niceness": "0", "OMP_WAIT_POLICY": "passive"}
        own = {"PYTHONPATH": path, "FLASHRAY_FAULT": str(self.folder)} | polite
        return os.environ | own | self.environment

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        """A driver, whose cluster ends with it; a killed one's a little later: a pipe would stay open."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "stderr", "wb") as stderr:
            driver = subprocess.Popen(
                [*self.command, *flags],
                env=self.environment_of_driver,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=hear_sigint,
            )
        (self.folder / "driver.pid").write_text(str(driver.pid))
        return driver

    def run(self, *flags: str, faults: Sequence[Fault] = (), while_running: Callable[[], None] | None = None) -> int:
        """One start to its end; its exit code, negative where a signal ended it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in (*self.folder.glob("*.[0-9]*"), *self.folder.glob("*-returned")):
            place.unlink()  # calls are counted from the start
        (self.folder / "faults.json").write_text(json.dumps([vars(fault) for fault in faults]))
        began = time.monotonic()
        driver = self.start(*flags)
        try:
            if while_running is not None:
                while_running()
            driver.wait(timeout=self.patience)
        finally:
            driver.kill()
            driver.wait()
        self.seconds += time.monotonic() - began
        self.codes.append(driver.returncode)
        self.said.append((self.folder / "stderr").read_text())
        return driver.returncode

    def wait_for(self, there: Callable[[], bool], patience: float = 300) -> None:
        """Until something is there that the start under way makes."""
        deadline = time.monotonic() + patience
        while not there():
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.05)

    @property
    def log(self) -> list[str]:
        place = self.folder / "log"
        return place.read_text().splitlines() if place.exists() else []

    def reached(self, point: str) -> list[str]:
        """The images that a point was called for, each as often as it was."""
        return [line.partition(" ")[2] for line in self.log if line.startswith(point + " ")]

    @property
    def strikes(self) -> int:
        return len(self.reached("strike"))

    def note_strike(self, victim: str) -> None:
        """Count a strike that did not come from the hook."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log", "a") as log:
            log.write(f"strike {victim}\n")

    def reconstructions(self) -> dict[str, bytes]:
        return restored(self.output)

    def verified(self) -> Verified:
        return verify(self.output)

    def cost(self) -> Cost:
        found = self.verified()
        lost = len(found.missing) + len(found.pending) + len(found.changed) + found.unplanned
        duplicated = len(found.duplicated) + len(found.strangers)
        again = [len(images) - len(set(images)) for images in (self.reached("solve"), self.reached("severity"))]
        return Cost(found.images, self.strikes, lost, duplicated, *again, self.seconds)


def stamps(job: Job, *folders: str) -> dict[Path, int]:
    """When the files of these folders of the run's records were written; of all of the output without any.

    It is the time of the last change, because restored images have their source's time of modification.
    """
    roots = [record(job.output) / name for name in folders] or [Path(job.output)]
    return {path: path.stat().st_ctime_ns for root in roots for path in root.rglob("*.*") if path.is_file()}


def settled(job: Job, quiet: float = 5.0) -> dict[Path, int]:
    """The stamps once nothing has changed for so many seconds: a killed driver's workers may finish a write."""
    before = stamps(job)
    while True:
        time.sleep(quiet)
        now = stamps(job)
        if now == before:
            return now
        before = now


def kept(before: dict[Path, int]) -> bool:
    """Whether none of them was written again."""
    return all(path.stat().st_ctime_ns == stamp for path, stamp in before.items())


def hear_sigint() -> None:
    """Tests that a shell runs in the background are deaf to it, and so would be what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def arguments(models: TinyModels, archive: str | Path, output: str | Path, **settings: Any) -> list[str]:
    """Of jobs/reconstruct.py, for small clean photos and the tiny models."""
    values = {
        "archive": archive,
        "output": output,
        "recipe": PLAIN_RECIPE,
        "measurement": "simulated",
        "prior": models.prior,
        "start.severity_encoder": models.encoder,
        "solver.steps": 20,
        "solver.settings.dc_step": 0.1,
        "metrics": "[psnr]",
        "severity_batch": 4,
        "unit_images": 4,
        "slots": 2,
        "solver_actors": 1,  # so that the units come one after the other
        "tracking.enabled": "false",
        "io.provenance": "false",  # the note names the run, and the bytes of two runs are compared
        **settings,
    }
    return [f"--{name}={value}" for name, value in values.items()]
