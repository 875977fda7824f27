"""Folders of object stores are copied to a machine once, whole, and under names that their content decides."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from flashray import storage
from flashray.storage.uri import download

FILES = {"config.json": b"{}", "unet/weights.safetensors": b"weights", "unet/notes.txt": b"notes"}


def wanted(key: str) -> bool:
    return not key.endswith(".txt")


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in an object store, with an empty cache on this machine."""
    monkeypatch.setenv("FLASHRAY_CACHE", str(tmp_path / "cache"))
    uri = f"memory://{tmp_path.name}/model"
    for name, data in FILES.items():
        storage.put_bytes(storage.join(uri, name), data)
    return uri


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are downloaded, each a little slowly."""
    found: list[str] = []

    def slow(uri: str, path: Path, size: int) -> None:
        found.append(path.name)
        time.sleep(0.05)
        download(uri, path, size)

    monkeypatch.setattr("flashray.storage.node_cache.download", slow)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_wanted_is_copied(uri: str):
    copy = storage.cached_folder(uri, wanted)
    assert contents(copy) == {name: data for name, data in FILES.items() if wanted(name)}


def test_many_at_once_download_once(uri: str, downloads: list[str]):
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: storage.cached_folder(uri, wanted), range(8)))
    assert len(copies) == 1
    assert sorted(downloads) == ["config.json", "weights.safetensors"]


def test_a_change_of_any_file_makes_another_copy(uri: str):
    first = storage.cached_folder(uri, wanted)
    storage.put_bytes(storage.join(uri, "unet/notes.txt"), b"other")
    assert storage.cached_folder(uri, wanted) == first
    storage.put_bytes(storage.join(uri, "config.json"), b"[]")
    second = storage.cached_folder(uri, wanted)
    assert second != first
    assert contents(first)["config.json"] == b"{}"
    assert contents(second)["config.json"] == b"[]"


def fails(uri: str, path: Path, size: int) -> None:
    if path.name != "config.json":
        raise OSError("the connection broke")
    download(uri, path, size)


def is_short(uri: str, path: Path, size: int) -> None:
    download(uri, path, size + 1)


@pytest.mark.parametrize(("trouble", "message"), [(fails, "the connection broke"), (is_short, "gave 2 of 3 bytes")])
def test_a_copy_that_is_cut_short_does_not_open(
    trouble: Callable[[str, Path, int], None], message: str, uri: str, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr("flashray.storage.node_cache.download", trouble)
        with pytest.raises(OSError, match=message):
            storage.cached_folder(uri, wanted)
    assert len(contents(storage.cached_folder(uri, wanted))) == 2


def test_a_folder_that_changes_while_it_is_copied_is_not_opened(uri: str, monkeypatch: pytest.MonkeyPatch):
    def change(one: str, path: Path, size: int) -> None:
        download(one, path, size)
        storage.put_bytes(storage.join(uri, "config.json"), b"[]")

    monkeypatch.setattr("flashray.storage.node_cache.download", change)
    with pytest.raises(OSError, match="has changed while it was copied"):
        storage.cached_folder(uri, wanted)


@pytest.mark.parametrize("key", ["../../outside.json", "a/./b.json", "a//b.json"])
def test_keys_that_lead_elsewhere_are_refused(key: str, uri: str, tmp_path: Path):
    fsspec.filesystem("memory").pipe_file(f"{uri}/{key}", b"{}")
    with pytest.raises(OSError, match="is no name of a file"):
        storage.cached_folder(uri, wanted)
    assert not list(tmp_path.rglob("outside.json"))


_WAITS = """
import sys, time
from pathlib import Path
from flashray.storage import cached_folder, node_cache
from flashray.storage.uri import download
def stuck(uri, path, size):
    download(uri, path, size)
    Path(sys.argv[2]).touch()
    time.sleep(60)
node_cache.download = stuck
cached_folder(sys.argv[1], bool)
"""


def test_a_killed_process_leaves_nothing_that_opens_and_no_lock(uri: str, s3: str, tmp_path: Path):
    source = f"{s3}/{tmp_path.name}"
    for name, data in FILES.items():
        storage.put_bytes(storage.join(source, name), data)
    begun, environment = tmp_path / "begun", os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", _WAITS, source, str(begun)], env=environment) as process:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert contents(storage.cached_folder(source, bool)) == FILES
