"""What an archive may hold: every image that is there has a row or an error, and nothing of the user's is touched."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashray import storage
from flashray.errors import ConfigError, ImageError
from flashray.images import encode_png, read_header
from flashray.pipeline.archive import Archive, read_archive
from flashray.pipeline.load import read_file, read_images
from flashray.pipeline.outputs import without_place
from flashray.pipeline.run_config import RunConfig, check
from flashray.recipe import DegradationConfig
from flashray.shards.place import Place
from tests.support.runs import config_of
from tests.support.small_runs import write_unwatched

FIXED = DegradationConfig(settings={"std": [1.0, 1.0]})


def config(archive: Path, **values: Any) -> RunConfig:
    asked = {"output": archive.parent / "out", "degradation": FIXED} | values
    return check(config_of(archive, **asked))


def errors_of(archive: Archive) -> dict[str, str | None]:
    """Each listed image, and why it cannot be read."""
    images = archive.images
    read = read_images([Place(uri) for uri in images["uri"].to_pylist()], images["refused"].to_pylist())
    return {key: one.error for key, one in zip(images["key"].to_pylist(), read, strict=True)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/c.png"):
        (folder / name).write_bytes(b"x" * len(name))
    return folder


@pytest.mark.parametrize("where", ["out/photos", "out/attempts", "out/_flashray/attempts", "out"])
def test_row_01_an_archive_inside_the_output_is_refused(tmp_path: Path, where: str) -> None:
    photos = tmp_path / where
    photos.mkdir(parents=True)
    (photos / "a.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="lies inside"):
        config(photos, output=tmp_path / "out")
    with pytest.raises(ConfigError, match="lies inside"):
        config(tmp_path, output=tmp_path / "out", references=str(photos))
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(ConfigError, match="lies inside"):
        config(tmp_path / "link", output=tmp_path / "out")


def test_row_02_folders_that_can_be_listed_and_not_entered(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below a folder without the right to search it, or with a path that is too long for the system."""
    scandir = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self._entry, self.name, self.path = entry, entry.name, entry.path
            self.is_symlink = entry.is_symlink

        def stat(self) -> os.stat_result:
            if self.name == "sub":
                raise OSError(36, "File name too long")
            return self._entry.stat()

        def is_dir(self, follow_symlinks: bool = True) -> bool:
            return self._entry.is_dir(follow_symlinks=follow_symlinks)

        def is_file(self) -> bool:
            return self._entry.is_file()

    class Entries(list[Entry]):
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", lambda path: Entries(Entry(one) for one in scandir(path)))
    with pytest.raises(ConfigError, match=r"sub \(File name too long\)"):
        read_archive(config(photos))
    found = read_archive(config(photos, skip_unreadable=True))
    assert found.unreadable == ["sub (File name too long)"]


def test_row_02_a_path_that_is_longer_than_the_system_takes(photos: Path) -> None:
    home, deep = os.getcwd(), "d" * 250
    try:
        os.chdir(photos)
        for _ in range(20):
            os.mkdir(deep)
            os.chdir(deep)
        with open("lost.png", "wb") as file:
            file.write(b"x")
    finally:
        os.chdir(home)
    with pytest.raises(ConfigError, match="File name too long"):
        read_archive(config(photos))


def test_row_04_a_file_where_others_need_a_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("a.jpg", "a.jpg.png/b.png", "a.jpg.png/deep/c.png", "d.jpg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"x")
    found = errors_of(read_archive(config(photos, format="png")))
    assert found.pop("a.jpg") == (
        "its output 'a.jpg.png' would lie where other images of the archive need a folder; rename it, or leave out "
        "--format"
    )
    assert set(found.values()) == {None}
    assert len(found) == 3
    assert set(errors_of(read_archive(config(photos))).values()) == {None}
    # an object store may hold both under their own names
    assert set(without_place(["a.png", "a.png/b.png", "a.png/b.png/c.png", "d.png"], "same")) == {
        "a.png",
        "a.png/b.png",
    }
    for name in ("../a.png", "b/../../a.png", "b//a.png", "./a.png", "b/.", "/etc/a.png"):
        assert "no name below the output" in without_place([name, "c.png"], "same")[name]
    with pytest.raises(ConfigError, match=r"would be written to one file, 'a\.jpg\.png'"):
        without_place(["a.jpg", "a.jpg.png"], "png")


def test_row_04_a_folder_of_somebody_else_in_the_output(tmp_path: Path, written: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "out").mkdir(parents=True)
    (tmp_path / "out" / "sub").write_bytes(b"a file")
    with pytest.raises(OSError, match="sub"):  # the run stops, names it, and goes on when it is gone
        written(["sub/b.png"])
    assert (tmp_path / "out" / "sub").read_bytes() == b"a file"
    rows = written(["c.png", "n" * 300 + ".png"])
    assert [row["status"] for row in rows.values()] == ["ok", "error"]
    assert "too long" in rows["n" * 300 + ".png"]["error"]


def test_row_11_links_that_lead_in_a_circle(photos: Path) -> None:
    (photos / "loop").symlink_to(photos)
    (photos / "sub" / "up").symlink_to("..")
    (photos / "to itself").symlink_to("to itself")
    (photos / "above").symlink_to(photos.parent)
    (photos / "root").symlink_to("/")
    found = errors_of(read_archive(config(photos)))
    assert {key for key, error in found.items() if error} == {"loop", "sub/up", "to itself", "above", "root"}
    assert {key for key, error in found.items() if not error} == {"a.png", "b.jpg", "sub/c.png"}


def test_row_11_links_to_the_output(photos: Path, tmp_path: Path) -> None:
    """The listing is the same before and after the run, and holds no restored image."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (photos / "out.v1").symlink_to(shelf / "out")
    (photos / "part").symlink_to(shelf / "out" / "sub")
    (photos / "shelf").symlink_to(shelf)
    (photos / "one.png").symlink_to(shelf / "out" / "a.png")
    asked = config(photos, output=shelf / "out")
    before = read_archive(asked)
    (shelf / "out" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/c.png"):
        (shelf / "out" / name).write_bytes(b"restored")
    after = read_archive(asked)
    assert after.images == before.images
    found = errors_of(after)
    assert {key for key, error in found.items() if error == "it is a link to the run's own output"} == {
        *("out.v1", "part", "shelf", "one.png")
    }
    assert len(found) == 7


@pytest.mark.parametrize("mask", ["/x.png", "/", "", "nowhere/x.png", "..", "/dev/zero", "/dev/null"])
@pytest.mark.timeout(10)
def test_row_12_masks_that_name_something_else(photos: Path, tmp_path: Path, mask: str) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"key,mask\na.png,{mask}\nb.jpg,{mask}\n")
    asked = config(photos, manifest=str(manifest), degradation=DegradationConfig("random_inpainting"))
    images = read_archive(asked).images
    assert images["mask_size"].null_count + images["mask_size"].to_pylist().count(0) == 3
    assert not mask or read_file(str(Path(tmp_path, mask))).error is not None


@pytest.mark.timeout(20)
def test_row_13_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert read_file(str(tmp_path / "a.png")).error == (
        "it cannot be read: it is no file but a pipe, a socket or a device"
    )
    for uri in (tmp_path / "a.png", "/dev/zero"):  # also where nothing looks before it reads
        with pytest.raises(OSError, match="no file but a pipe"):
            storage.read_bytes(str(uri))
    with pytest.raises(ConfigError, match="no file but a pipe"):
        read_archive(config(_with_image(tmp_path), manifest=str(tmp_path / "a.png")))


def _with_image(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "b.png").write_bytes(b"x")
    return tmp_path / "one"


def test_row_17_names_that_are_not_utf8(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (b"caf\xe9.png", "caf\ufffd.png".encode(), b"caf\xef\xbf\xbe.png", b"\xff\xfe.jpg"):
        (photos / os.fsdecode(name)).write_bytes(b"x")
    found = errors_of(read_archive(config(photos)))
    assert found == {
        "\\xff\\xfe.jpg": "the file is no longer there, or its name is not valid UTF-8",
        "caf\\xe9.png": "the file is no longer there, or its name is not valid UTF-8",
        "caf\ufffd.png": None,
        "caf\ufffe.png": None,
    }


@pytest.mark.timeout(20)
def test_row_29_what_is_no_file_is_counted_and_named(photos: Path) -> None:
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "pipe")
    (photos / "dead.png").symlink_to("/nowhere.png")
    (photos / "disk").symlink_to("/mnt/nowhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(photos / "s.png"))
        found = read_archive(config(photos))
        errors = errors_of(found)
    assert {key for key, error in errors.items() if error} == {"pipe.png", "dead.png", "disk", "s.png"}
    assert [entry.key for entry in found.others] == ["pipe"]
    assert len(errors) + len(found.others) == 8


def test_row_14_the_header_is_read_before_memory_is_taken() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 13377, 13377, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="too large, 13377 x 13377"):
        read_header(bomb)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The write stage on restored images of these keys; the rows of their commit."""
    import numpy as np
    import pyarrow as pa
    import torch

    from flashray.pipeline.commit import read_commits
    from flashray.pipeline.solve import SOLVED
    from flashray.pipeline.worker_settings import WorkerSettings

    data = encode_png(torch.zeros(3, 16, 16))
    (tmp_path / "source.png").write_bytes(data)
    image = {
        "pixels": np.zeros((16, 16, 3), np.uint16).tobytes(),
        "height": 16,
        "width": 16,
        "uri": str(tmp_path / "source.png"),
        "data": data,
    }

    def written(keys: list[str]) -> dict[str, Any]:
        work = WorkerSettings.of(config_of(tmp_path, tmp_path / "out", provenance=False), "cpu", 1, lpips=False)
        rows = [{"key": key, "status": "ok", "nfe": 1} for key in keys]
        unit = {"unit_id": "00-00000000", "rows": rows, "images": [image] * len(keys)}
        write_unwatched(pa.Table.from_pylist([unit], schema=SOLVED), work)
        found = read_commits(str(tmp_path / "out"), ["00-00000000"])
        return {row["key"]: row for row in found.to_pylist()}

    return written
