"""Large photos of several processes share the machine's memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashray.errors import FlashrayError, ImageError
from flashray.pipeline import pixel_budget
from flashray.pipeline.pixel_budget import MEGAPIXEL, PIXEL_BYTES, PixelBudget, counted_pixels

TEN = 20 * PIXEL_BYTES * MEGAPIXEL  # bytes of a machine whose budget is ten megapixels
HOLD = """
import sys, time
from pathlib import Path
from flashray.pipeline.pixel_budget import PixelBudget
memory, folder, pixels, seconds = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with PixelBudget(memory, folder).take(pixels):
    for sign in "+-":
        with open(folder / "log", "a") as file:
            file.write(f"{sign}{pixels}\\n")
        time.sleep(seconds * (sign == "+"))
"""


def hold(folder: Path, megapixels: int, seconds: float = 0.2) -> subprocess.Popen[bytes]:
    arguments = [str(TEN), str(folder), str(megapixels * MEGAPIXEL), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", HOLD, *arguments])


def test_never_more_than_the_budget_is_in_flight(tmp_path: Path) -> None:
    processes = [hold(tmp_path, megapixels) for megapixels in (6, 5, 4, 9, 3, 40)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    now, alone = 0, 0
    for line in (tmp_path / "log").read_text().split():
        now += int(line) // MEGAPIXEL
        alone += line == f"+{40 * MEGAPIXEL}" and now == 40  # larger than the budget: by itself
        assert now <= 10 or now == 40
    assert (now, alone) == (0, 1)


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    killed = hold(tmp_path, 10, seconds=600)
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    waiting = hold(tmp_path, 10)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert waiting.wait(timeout=60) == 0


def test_small_images_wait_for_nobody(tmp_path: Path) -> None:
    budget = PixelBudget(TEN, tmp_path)
    with budget.take(100 * MEGAPIXEL), budget.take(MEGAPIXEL - 1):
        assert len(list(tmp_path.iterdir())) == budget.megapixels + 1 == 11


def test_an_image_that_the_machine_cannot_hold(tmp_path: Path) -> None:
    budget = PixelBudget(TEN, tmp_path)
    budget.check(5120, 4096)
    with pytest.raises(ImageError, match="21 megapixels need about 5 GB of memory, and this machine has 5"):
        budget.check(5121, 4096)
    budget.check(10240, 1024)  # runs whole, so a pixel takes twice as much
    with pytest.raises(ImageError, match="10 megapixels need about 5 GB"):
        budget.check(10241, 1024)


def test_pixels_count_twice_in_low_images_and_once_in_tall_ones() -> None:
    assert [counted_pixels(10, height) for height in (1, 1600, 1601, 3200, 4000)] == [20, 32000, 32000, 32000, 40000]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_budget.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"flashray-{os.getuid()}"
    folder.symlink_to(tmp_path)
    with pytest.raises(FlashrayError, match="is not a folder that only this user can write"):
        PixelBudget(TEN)
    folder.unlink()
    assert PixelBudget(TEN).folder == folder
    folder.chmod(0o777)
    with pytest.raises(FlashrayError, match="is not a folder"):
        PixelBudget(TEN)
