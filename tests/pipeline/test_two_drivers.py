"""Two drivers on one output at once: one works, the other says who and ends; nothing is lost or done twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashray.pipeline.verify import Verified, verify
from tests.conftest import TinyModels
from tests.pipeline.test_kill import IMAGES, ROOT, command, photos  # noqa: F401


@pytest.mark.fault
def test_the_second_driver_is_refused_and_the_first_finishes(tiny_models: TinyModels, photos: Path, tmp_path: Path):  # noqa: F811
    output = tmp_path / "run"
    argv = [sys.executable, str(ROOT / "jobs" / "reconstruct.py"), *command(tiny_models, photos, output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    drivers = [
        subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [driver.communicate(timeout=300)[1] for driver in drivers]
    codes = [driver.returncode for driver in drivers]
    assert sorted(codes) == [0, 1]
    assert "another driver" in said[codes.index(1)]
    assert verify(str(output)) == Verified(images=IMAGES, restored=IMAGES)
    assert subprocess.run(argv, env=environment, capture_output=True).returncode == 0  # nothing to do
