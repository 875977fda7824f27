"""Files that are no images: counted, copied once, checked, and deleted with their run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline.archive import Archive, read_archive
from flashray.pipeline.others import copy_others, others_copied, read_others
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_record import write_record
from flashray.pipeline.summary import beside_the_images, remarks
from flashray.pipeline.verify import verify
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


def test_a_full_output_stops_the_run_and_an_unreadable_file_does_not(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, others = config_of(str(archive), str(tmp_path / "restored")).io, read(archive).others
    whole = storage.copy

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "copy", full)
    with pytest.raises(OSError, match="No space left"):
        copy_others(run, others)
    assert not others_copied(run.output, others)
    monkeypatch.setattr(storage, "copy", whole)
    (archive / "album.txt").rename(archive / "elsewhere")
    copy_others(run, others)
    (failed,) = [row for row in read_others(run.output).to_pylist() if row["error"]]
    assert failed["key"] == "album.txt"
    (archive / "elsewhere").rename(archive / "album.txt")
    assert others_copied(run.output, others), "without a retry it is done"
    copy_others(run, others, again=True)
    assert (tmp_path / "restored" / "album.txt").read_bytes() == b"album.txt"
    assert read_others(run.output)["error"].null_count == len(others)


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

    def dies(source: str, target: str) -> None:
        if source.endswith(".xmp"):
            raise KeyboardInterrupt
        whole(source, target)

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
