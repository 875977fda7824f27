"""Loss of power: what a commit names is on the disk before the commit is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flashray import storage


def test_row_31_files_and_folders_are_synced_before_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append(path.relative_to(tmp_path).as_posix())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    out = str(tmp_path / "out" / "deep")
    storage.put_bytes(f"{out}/a.png", b"restored")
    assert [name for name in synced if ".flashray-" not in name] == [".", "out", "out/deep"]
    assert synced.index("out/deep") > next(i for i, name in enumerate(synced) if ".flashray-" in name)
    synced.clear()
    storage.create_if_absent(f"{out}/commit", b"a.png")
    assert [".flashray-" in name for name in synced] == [True, False]
    synced.clear()
    storage.copy(f"{out}/a.png", f"{out}/b.png")
    assert ".flashray-" in synced[-2]
    assert synced[-1] == "out/deep"
