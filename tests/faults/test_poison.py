"""An image that kills whoever works on it is given up after three deaths; its neighbours are restored."""

from __future__ import annotations

import pytest

from flashray.images import open_image
from flashray.pipeline.quarantine import ATTEMPTS
from flashray.pipeline.run_status import RunStatus
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, Fault, Job

POISON = "07.png"


def restored_but_poison(job: Job, undisturbed: Job) -> None:
    """All others are there, and as good as the same: alone, the arithmetic rounds differently."""
    found, whole = job.reconstructions(), undisturbed.reconstructions()
    del whole[POISON]
    assert found.keys() == whole.keys()
    changed = [key for key in found if found[key] != whole[key]]
    neighbours = 3  # the others of its unit, or of its chunk
    assert len(changed) <= neighbours
    for key in changed:
        assert (open_image(found[key]).pixels - open_image(whole[key]).pixels).abs().max() < 1.5 / 127.5


@pytest.mark.fault
@pytest.mark.parametrize("point", ["read", "severity", "solve", "encode"])
def test_a_poison_image(job: Job, undisturbed: Job, tell: Told, point: str) -> None:
    assert job.run(faults=[Fault(point, poison=POISON)]) == 1
    assert job.strikes == ATTEMPTS
    found = job.verified()
    assert (found.failed, found.restored, found.sound) == ([POISON], IMAGES - 1, True)
    (failure,) = RunStatus.read(job.output).failures.to_pylist()
    assert f"the worker died {ATTEMPTS} times" in failure["error"]
    assert "this image alone" in failure["error"]
    restored_but_poison(job, undisturbed)
    tell("poison image", point, job)

    if point == "solve":
        assert job.run("--retry-failed") == 0, job.said[-1]  # it kills no more, and its attempts are counted anew
        assert job.verified().complete


@pytest.mark.fault
def test_a_poison_image_that_takes_the_driver_with_it(job: Job, undisturbed: Job, tell: Told) -> None:
    fault = Fault("solve", victim="driver", poison=POISON)
    for _ in range(ATTEMPTS):
        assert job.run(faults=[fault]) == -9
    assert job.run(faults=[fault]) == 1, job.said[-1]
    assert job.verified().failed == [POISON]
    restored_but_poison(job, undisturbed)
    tell("poison image kills the driver", "solve", job)
