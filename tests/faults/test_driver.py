"""A driver that is killed, stopped or doubled: the same command goes on, and the bytes are the same."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from flashray.pipeline.lease import latest
from flashray.pipeline.options import parse_run
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, Fault, Job, kept, stamps
from tests.support.runs import record

WHOLE = Verified(images=IMAGES, restored=IMAGES)
MOMENTS = {
    "plan pass": Fault("severity", victim="driver", call=3),
    "mid-solve": Fault("solve", victim="driver", call=4, after="commit"),
    "between the last put and the commit": Fault("commit", victim="driver", call=5),
}


def test_a_driver_killed_midway_in_short(
    tiny_models: TinyModels, photos: Path, tmp_path: Path, ray_cluster: None
) -> None:
    """As below; what is not killed runs in this process, for speed."""
    job = Job(tiny_models, str(photos), str(tmp_path / "run"), tmp_path / "notes")
    assert job.run(faults=[MOMENTS["mid-solve"]]) == -signal.SIGKILL
    state = RunStatus.read(job.output)
    assert 0 < len(state.pending) < IMAGES, "killed too early or too late"
    before = stamps(job, "plan", "commits")
    assert restore_archive(parse_run(job.arguments)) == 0
    assert kept(before)
    assert job.verified() == WHOLE

    undisturbed = Job(tiny_models, str(photos), str(tmp_path / "undisturbed"), tmp_path / "notes")
    assert restore_archive(parse_run(undisturbed.arguments)) == 0
    assert job.reconstructions() == undisturbed.reconstructions()


@pytest.mark.fault
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_driver(job: Job, undisturbed: Job, tell: Told, moment: str) -> None:
    assert job.run(faults=[MOMENTS[moment]]) == -signal.SIGKILL
    before = stamps(job, "plan", "commits")
    assert job.run() == 0, job.said
    assert kept(before)
    assert job.verified() == WHOLE
    assert job.reconstructions() == undisturbed.reconstructions()
    if moment != "plan pass":  # the plan is reused
        assert sorted(job.reached("severity")) == sorted(undisturbed.reached("severity"))
    tell("kill -9 of the driver", moment, job)


@pytest.mark.fault
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_driver(job: Job, undisturbed: Job, tell: Told, name: str) -> None:
    """Units under way are abandoned whole; nothing half-written, no attempt held against them, no lease left."""
    assert (
        job.run(faults=[Fault("solve", victim="driver", call=4, after="commit", signal=name)])
        == 128 + signal.Signals[name]
    )
    assert "the same command goes on from here" in job.said[-1]
    found = job.verified()
    assert found.sound
    assert 0 < len(found.pending) < IMAGES
    assert not list(Path(job.output).rglob(".flashray-*"))
    begun = {path.stem for path in record(job.output).glob("attempts/*")}
    assert not begun & set(RunStatus.read(job.output).pending["unit_id"].to_pylist())
    lease = latest(job.output)
    assert lease is not None
    assert lease.ended
    before = stamps(job, "plan", "commits")
    assert job.run() == 0, job.said
    assert kept(before)
    assert job.verified() == WHOLE
    assert job.reconstructions() == undisturbed.reconstructions()
    tell(f"{name} to the driver", "mid-solve", job)


@pytest.mark.fault
@pytest.mark.parametrize("moment", ["at start", "midway"])
def test_two_drivers_at_once(job: Job, undisturbed: Job, tell: Told, moment: str) -> None:
    """The second one says who is at work, and ends; with exit code 1, since it is no mistake of the configuration."""
    second: list[tuple[int, str]] = []

    def intrude() -> None:
        driver = int((job.folder / "driver.pid").read_text())
        if moment == "midway":
            job.wait_for(lambda: bool(job.reached("commit")))
            os.kill(driver, signal.SIGSTOP)  # it would be done before the other one has started
        other = subprocess.Popen(job.command, env=job.environment_of_driver, stderr=subprocess.PIPE, text=True)
        _, said = other.communicate(timeout=300)
        second.append((other.returncode, said))
        os.kill(driver, signal.SIGCONT)

    first = job.run(while_running=intrude)
    ends = [(first, job.said[-1]), *second]
    assert sorted(code for code, _ in ends) == [0, 1], ends
    assert "another driver" in dict(ends)[1]
    assert job.verified() == WHOLE
    assert job.reconstructions() == undisturbed.reconstructions()
    tell("two drivers on one output", moment, job)
