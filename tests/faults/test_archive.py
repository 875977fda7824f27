"""An archive that is partly broken, and one that changes between the plan and the resume."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from flashray.images import encode_png
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, Fault, Job, kept, settled, stamps
from tests.support.models import SIDE

pytestmark = pytest.mark.fault
MANY, BATCH = 2000, 8
SHORT = {"solver.steps": 4, "severity_batch": BATCH, "unit_images": 100, "slots": 8}


def broken(whole: bytes) -> dict[str, bytes]:
    """Files that have an image's name and are none."""
    middle = len(whole) // 2
    return {
        "empty": b"",
        "cut short": whole[:middle],
        "a damaged block": whole[:middle] + bytes(64) + whole[middle + 64 :],
        "an error page": b"<!DOCTYPE html><title>404 Not Found</title>",
        "another format": b"%PDF-1.7\n" + bytes(500),
        "noise": whole[:8] + bytes(range(256)),
    }


def test_5_percent_of_the_files_are_broken(
    tiny_models: TinyModels, photo: torch.Tensor, tmp_path: Path, tell: Told
) -> None:
    """Good ones are restored, to the same bytes as without the broken ones; a broken one is a row with its reason.

    To the byte, because the broken files fill batches of their own: a batch of another size rounds differently.
    """
    mixed, good = tmp_path / "mixed", tmp_path / "good"
    mixed.mkdir()
    good.mkdir()
    why: dict[str, str] = {}
    for i in range(MANY):
        top, left = divmod(i, 50)
        data = encode_png(photo[:, 10 * top : 10 * top + SIDE, 9 * left : 9 * left + SIDE])
        name = f"{i:04d}.png"
        if i // BATCH % 20 == 7:
            kinds = broken(data)
            why[name] = list(kinds)[len(why) % len(kinds)]
            (mixed / name).write_bytes(kinds[why[name]])
        else:
            (mixed / name).write_bytes(data)
            (good / name).write_bytes(data)
    assert 0.045 < len(why) / MANY < 0.055

    job = Job(tiny_models, str(mixed), str(tmp_path / "run"), tmp_path / "notes", SHORT)
    assert job.run() == 1
    found = job.verified()
    assert found == Verified(images=MANY, restored=MANY - len(why), failed=sorted(why))
    errors = {row["key"]: row["error"] for row in RunStatus.read(job.output).failures.to_pylist()}
    for name, error in errors.items():
        print(f"{why[name]}: {error}")
        assert error
    assert f"{len(why)} of {MANY} images failed" in job.said[-1]
    assert "--retry-failed" in job.said[-1]

    undisturbed = Job(tiny_models, str(good), str(tmp_path / "good run"), tmp_path / "notes of the good", SHORT)
    assert undisturbed.run() == 0, undisturbed.said
    assert job.reconstructions() == undisturbed.reconstructions()
    tell("5 % corrupt, empty, non-image files", "throughout", job, undisturbed)


def test_an_archive_that_changes_between_plan_and_resume(
    tiny_models: TinyModels, photos: Path, tmp_path: Path, undisturbed: Job, tell: Told
) -> None:
    """It is refused, each difference named; as it was, it goes on with the plan that there is."""
    archive = tmp_path / "photos"
    shutil.copytree(photos, archive)
    job = Job(tiny_models, str(archive), str(tmp_path / "run"), tmp_path / "notes")
    assert job.run(faults=[Fault("solve", victim="driver", call=4)]) == -signal.SIGKILL
    before = settled(job)

    shutil.copy(archive / "00.png", archive / "new.png")
    shutil.move(archive / "03.png", tmp_path / "03.png")
    (archive / "05.png").write_bytes((photos / "05.png").read_bytes() + b"more")
    assert job.run() == 2
    assert "1 added (new.png), 1 removed (03.png), 1 changed (05.png)" in job.said[-1]
    assert "Choose another output" in job.said[-1]
    assert stamps(job) == before, "a refused start changes nothing"

    (archive / "new.png").unlink()
    shutil.move(tmp_path / "03.png", archive / "03.png")
    shutil.copy(photos / "05.png", archive / "05.png")
    plan = stamps(job, "plan", "commits")
    assert job.run() == 0, job.said
    assert kept(plan)
    assert sorted(job.reached("severity")) == sorted(undisturbed.reached("severity"))
    assert job.verified() == Verified(images=IMAGES, restored=IMAGES)
    assert job.reconstructions() == undisturbed.reconstructions()
    tell("archive changed after the plan", "resume", job)
