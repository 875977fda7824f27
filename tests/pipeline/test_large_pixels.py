"""How large an archive's large images are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from flashray import storage
from flashray.pipeline import large_pixels as module
from flashray.pipeline.archive import read_archive
from flashray.pipeline.large_pixels import large_pixels
from tests.support.runs import config_of


def listing(folder: Path) -> pa.Table:
    return read_archive(config_of(str(folder), "/o", measurement="simulated")).images


def test_three_quarters_are_not_larger(tmp_path: Path) -> None:
    for n in range(40):
        Image.new("RGB", (8 + n, 10)).save(tmp_path / f"{n:02d}.png")
    found = large_pixels(listing(tmp_path), 100)
    assert 30 * 10 <= found / 2 <= 40 * 10  # low images count twice
    (tmp_path / "zz.jpg").write_bytes(b"no image")
    assert large_pixels(listing(tmp_path), 100) > 0


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (80, 100)).save(tmp_path / "a.bmp")  # 24 kB
    assert large_pixels(listing(tmp_path), 100) == 2 * 8000
    monkeypatch.setattr(module, "READ", 1000)
    monkeypatch.setattr(module, "read_images", lambda places, refused: [])
    assert large_pixels(listing(tmp_path), 100) == pytest.approx(4000, rel=0.02)


def test_nothing_is_known_of_broken_files_or_without_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(b"")
    assert large_pixels(listing(tmp_path), 100) == 0
    Image.new("RGB", (80, 100)).save(tmp_path / "c.png")
    assert large_pixels(listing(tmp_path), 100) == 2 * 8000

    def absent(*_: object) -> None:
        raise storage.Unavailable("no answer")

    monkeypatch.setattr(module, "read_images", absent)
    assert large_pixels(listing(tmp_path), 100) == 0
