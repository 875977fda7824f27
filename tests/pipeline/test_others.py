"""Files that are no images: counted, copied once, checked, and deleted with their run."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline.archive import Archive, read_archive
from flashray.pipeline.others import copied_names, copy_others, others_copied, read_others
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_record import write_record
from flashray.pipeline.summary import beside_the_images, remarks
from flashray.pipeline.verify import verify
from flashray.shards.parquet_shard import parquet_of
from tests.support.runs import config_of
from tests.support.small_runs import commit, planned, record_of

COUNTS = {"estimated": 0, "scored": 0, "restored": 3, "unchanged": 0, "lost": 0, "warnings": 0}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in ("a.png", "sub/a.xmp", "album.txt", ".DS_Store"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    os.utime(folder / "sub" / "a.xmp", ns=(1, 2))
    return folder


def read(archive: Path) -> Archive:
    return read_archive(config_of(str(archive), measurement="simulated"))


def test_they_are_copied_once(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "restored"
    run = config_of(str(archive), str(output)).io
    others = read(archive).others
    assert [entry.key for entry in others] == [".DS_Store", "album.txt", "sub/a.xmp"]
    assert not others_copied(run.output, others)
    copy_others(run, others)
    assert (output / "sub" / "a.xmp").read_bytes() == b"sub/a.xmp"
    assert (output / "sub" / "a.xmp").stat().st_mtime_ns == 2
    (archive / "album.txt").write_bytes(b"changed later")
    copy_others(run, others)
    assert (output / "album.txt").read_bytes() == b"album.txt"
    found = beside_the_images(read(archive), read_others(run.output))
    assert (found["other_files"], found["copied_files"], found["not_copied"]) == (3, 3, [])
    assert remarks(found | COUNTS) == []


@pytest.mark.parametrize("store", ["", "memory://"])
def test_what_was_copied_is_recorded_and_not_what_was_listed(archive: Path, tmp_path: Path, store: str) -> None:
    run = config_of(str(archive), f"{store}{tmp_path}/restored").io
    others = read(archive).others
    (archive / "album.txt").write_bytes(b"it has grown while the images were restored")
    copy_others(run, others)
    sizes = {row["key"]: row["size"] for row in read_others(run.output).to_pylist()}
    assert sizes["album.txt"] == storage.file_size(storage.join(run.output, "album.txt")) == 43
    assert others_copied(run.output, others)


def failing(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("flashray.storage.uri.shutil.copyfileobj", fail)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), OSError(errno.EROFS, "read-only"), storage.Unavailable()]
)
def test_what_all_files_share_stops_the_run(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    run, others = config_of(str(archive), str(tmp_path / "restored")).io, read(archive).others
    with monkeypatch.context() as patched:
        failing(patched, error)
        with pytest.raises(type(error)):
            copy_others(run, others)
    assert not others_copied(run.output, others)
    assert copied_names(run.output) == {entry.key for entry in others}, "they may be there in part"
    copy_others(run, others)
    assert read_others(run.output)["error"].null_count == len(others)


@pytest.mark.parametrize("code", [errno.EIO, errno.EINVAL, errno.EEXIST, errno.EISDIR])
def test_what_one_file_suffers_is_its_own(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    run, others = config_of(str(archive), str(tmp_path / "restored")).io, read(archive).others
    with monkeypatch.context() as patched:
        failing(patched, OSError(code, os.strerror(code)))
        copy_others(run, others)
    assert read_others(run.output)["error"].null_count == 0
    assert others_copied(run.output, others), "without a retry it is done"
    assert copied_names(run.output) == set()
    copy_others(run, others, again=True)
    assert (tmp_path / "restored" / "album.txt").read_bytes() == b"album.txt"
    assert copied_names(run.output) == {entry.key for entry in others}


def test_a_store_that_refuses_a_file_refuses_the_next(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = config_of(str(archive), f"memory://{tmp_path}/restored").io
    whole, calls = storage.put_bytes, []

    def refuse(uri: str, data: bytes, *rest: Any) -> None:
        if "_flashray" in uri:
            return whole(uri, data, *rest)
        calls.append(uri)
        raise OSError("403")

    monkeypatch.setattr(storage, "put_bytes", refuse)
    with pytest.raises(OSError, match="403"):
        copy_others(run, read(archive).others)
    assert calls


def test_a_name_that_is_not_utf8_is_copied(archive: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (archive / name).write_bytes(b"old")
    run = config_of(str(archive), str(tmp_path / "restored")).io
    copy_others(run, read(archive).others)
    assert read_others(run.output)["error"].null_count == 4
    assert (tmp_path / "restored" / name).read_bytes() == b"old"


def test_what_a_grown_archive_adds_is_copied_too(archive: Path, tmp_path: Path) -> None:
    run = config_of(str(archive), str(tmp_path / "restored")).io
    copy_others(run, read(archive).others)
    (archive / "later.txt").write_bytes(b"later")
    others = read(archive).others
    assert not others_copied(run.output, others)
    copy_others(run, others)
    assert (tmp_path / "restored" / "later.txt").read_bytes() == b"later"
    assert others_copied(run.output, others)
    assert read_others(run.output)["key"].to_pylist() == [".DS_Store", "album.txt", "sub/a.xmp", "later.txt"]


def test_copies_that_are_gone_or_cut_are_made_again(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "restored"
    run, others = config_of(str(archive), str(output)).io, read(archive).others
    copy_others(run, others)
    (output / "album.txt").unlink()
    (output / "sub" / "a.xmp").write_bytes(b"")
    assert not others_copied(run.output, others)
    copy_others(run, others)
    assert [(output / name).read_bytes() for name in ("album.txt", "sub/a.xmp")] == [b"album.txt", b"sub/a.xmp"]
    assert others_copied(run.output, others)
    assert len(read_others(run.output)) == 3


def test_an_image_of_a_shard_and_another_file_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet_of(["portrait", "b.png"], [b"x", b"x"], {}))
    (tmp_path / "portrait").write_text("no image")
    assert len(read(tmp_path).images) == 2
    with pytest.raises(ConfigError, match=r"both .portrait., would be written to one file; .*leave out --copy-others"):
        read_archive(config_of(str(tmp_path), copy_others=True, measurement="simulated"))
    read_archive(config_of(str(tmp_path), copy_others=True, shards="parquet", measurement="simulated"))


def test_what_would_be_written_where_the_page_is_is_refused(archive: Path) -> None:
    (archive / "report.html").write_text("mine")
    assert "report.html" in [entry.key for entry in read(archive).others], "it is no run's"
    config = config_of(str(archive), measurement="simulated", copy_others=True)
    with pytest.raises(ConfigError, match=r"'report.html' of the archive .* leave out --copy-others"):
        read_archive(config)
    (archive / "report.html").unlink()
    (archive / "report.html").mkdir()
    (archive / "report.html" / "b.png").write_bytes(b"b")
    with pytest.raises(ConfigError, match=r"'report.html/b.png' of the archive .* rename it$"):
        read(archive)


def test_an_interrupted_copy_begins_anew(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config_of(str(archive), str(tmp_path / "restored")).io
    whole = storage.copy

    def dies(source: str, target: str) -> int:
        if source.endswith(".xmp"):
            raise KeyboardInterrupt
        return whole(source, target)

    monkeypatch.setattr(storage, "copy", dies)
    with pytest.raises(KeyboardInterrupt):
        copy_others(run, read(archive).others)
    assert not others_copied(run.output, read(archive).others)
    monkeypatch.setattr(storage, "copy", whole)
    copy_others(run, read(archive).others)
    assert len(read_others(run.output)) == 3


def test_one_that_cannot_be_copied_is_named(archive: Path, tmp_path: Path) -> None:
    os.mkfifo(archive / "pipe")
    run = config_of(str(archive), str(tmp_path / "restored")).io
    copy_others(run, read(archive).others)
    found = beside_the_images(read(archive), read_others(run.output))
    assert found["not_copied"] == [{"key": "pipe", "error": "it is no file but a pipe, a socket or a device"}]
    assert remarks(found | COUNTS) == ["1 files of the archive that are no images could not be copied"]


def test_verify_knows_them(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "restored"
    write_record(str(output), record_of(1))
    write_plan(str(output), 0, planned(["a.png"], ["u0"]))
    commit(output, "u0", ["a.png"])
    copy_others(config_of(str(archive), str(output)).io, read(archive).others)
    assert verify(str(output)).complete
    (output / "album.txt").unlink()
    (output / "sub" / "a.xmp").write_bytes(b"")
    found = verify(str(output))
    assert found.others_missing == ["album.txt", "sub/a.xmp"]
    assert not found.sound


def test_verify_knows_a_name_that_is_not_utf8(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "restored"
    write_record(str(output), record_of(1))
    write_plan(str(output), 0, planned(["a.png"], ["u0"]))
    commit(output, "u0", ["a.png"])
    (archive / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"old")
    copy_others(config_of(str(archive), str(output)).io, read(archive).others)
    assert verify(str(output)).complete
    (output / os.fsdecode(b"caf\xe8.txt")).write_bytes(b"new")
    assert verify(str(output)).strangers == ["caf\\xe8.txt"]


def test_what_is_left_out_is_said(archive: Path) -> None:
    found = beside_the_images(read(archive), read_others("/nowhere"))
    counted = COUNTS | {"unchanged": 2, "lost": 1, "warnings": 1, "unreadable_folders": ["a (Permission denied)"]}
    assert remarks(found | counted) == [
        "2 images would not change by half a grey level, and are the same files",
        "1 files lost something that their format cannot hold: problems.csv names them",
        "1 files were unclear: problems.csv names them",
        "3 files of the archive that are no images are not copied; --copy-others does",
        "left out, because they cannot be read: a (Permission denied)",
    ]
