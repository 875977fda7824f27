"""A worker that is killed, at each stage: another one does its work, and the bytes are the same."""

from __future__ import annotations

import pytest

from flashray.pipeline.verify import Verified
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, Fault, Job

STAGES = {
    "read, plan pass": Fault("read", call=3),
    "severity": Fault("severity", call=3),
    "read, solve pass": Fault("read", call=9),  # the plan pass reads six chunks
    "solve": Fault("solve", call=3),
    "write, before the first put": Fault("write", call=3),
    "write, between the last put and the commit": Fault("commit", call=3),
}


@pytest.mark.fault
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_worker(job: Job, undisturbed: Job, tell: Told, stage: str) -> None:
    assert job.run(faults=[STAGES[stage]]) == 0, job.said
    assert job.strikes == 1
    assert job.verified() == Verified(images=IMAGES, restored=IMAGES)
    assert job.reconstructions() == undisturbed.reconstructions()
    tell("kill -9 of a worker", stage, job)
