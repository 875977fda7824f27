"""A walk through a folder names whatever is there, and ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flashray import storage
from flashray.storage.local_walk import Entry, Unreadable, walk_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "one.png").write_bytes(b"123")
    (root / "a" / "b" / "two.png").write_bytes(b"12")
    return root


def keys(root: Path) -> dict[str, Entry]:
    return {one.key: one for one in walk_folder(str(root)) if isinstance(one, Entry)}


def test_links_are_followed_and_loops_are_named(folder: Path) -> None:
    (folder / "again").symlink_to(folder / "a")
    (folder / "a" / "b" / "loop").symlink_to(folder)
    (folder / "a" / "self").symlink_to(folder / "a")
    found = keys(folder)
    assert {key for key, one in found.items() if one.regular} == {
        *("a/one.png", "a/b/two.png", "again/one.png", "again/b/two.png")
    }
    assert {key for key, one in found.items() if one.hides} == {"a/b/loop", "a/self", "again/b/loop", "again/self"}


def test_links_to_folders_of_links_end(tmp_path: Path) -> None:
    """Two links at each of thirty levels would be a thousand million paths."""
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for name in ("left", "right"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    (tmp_path / "30").mkdir()
    (tmp_path / "30" / "a.png").touch()
    found = list(walk_folder(str(tmp_path)))
    assert len(found) < 10_000
    assert any(entry.key == "30/a.png" for entry in found if isinstance(entry, Entry))
    assert any(entry.hides for entry in found if isinstance(entry, Entry))


def test_what_is_no_ordinary_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to(folder / "absent.png")
    (folder / "dead folder").symlink_to("/nowhere/at/all")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    found = keys(folder)
    assert [key for key, one in sorted(found.items()) if not one.regular] == [
        *("dead folder", "dead.png", "itself.png", "pipe.png")
    ]
    assert [key for key, one in found.items() if one.hides] == ["dead folder"]
    assert [entry.key for entry in storage.list_files(str(folder))] == ["a/b/two.png", "a/one.png"]
    for name, words in {"pipe.png": "a pipe", "dead.png": "leads nowhere", "itself.png": "to itself"}.items():
        with pytest.raises(OSError, match=words):
            storage.refuse_special(str(folder / name))
    with pytest.raises(OSError, match="it is a folder"):
        storage.refuse_special(str(folder / "a"))
    with pytest.raises(FileNotFoundError):
        storage.refuse_special(str(folder / "absent.png"))


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(walk_folder(str(folder)))
    assert Unreadable("a/b", "Permission denied") in found
    assert storage.list_everything(str(folder)).unreadable == ["a/b (Permission denied)"]
    assert [entry.key for entry in storage.list_files(str(folder))] == ["a/one.png"]


def test_no_folder_is_an_empty_one(folder: Path) -> None:
    assert list(walk_folder(str(folder / "absent"))) == []
    assert list(walk_folder(str(folder / "a" / "one.png"))) == []


def test_a_copy_has_bytes_and_time(folder: Path, tmp_path: Path) -> None:
    source, target = folder / "a" / "one.png", tmp_path / "new" / "one.png"
    os.utime(source, ns=(5, 7))
    storage.copy(str(source), str(target))
    assert (target.read_bytes(), target.stat().st_mtime_ns) == (b"123", 7)
    storage.put_bytes(f"memory://{tmp_path}/one.png", b"1234")
    storage.copy(f"memory://{tmp_path}/one.png", str(target))
    assert target.read_bytes() == b"1234"
    assert storage.modified(str(source)) == 7
    assert storage.modified(f"memory://{tmp_path}/one.png") is None
    assert storage.modified(str(folder / "absent")) is None
    with pytest.raises(OSError, match="it is a folder"):
        storage.copy(str(folder), str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
