"""Whatever contradicts a commit is found, and nothing else is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flashray.cli import main
from flashray.errors import ConfigError
from flashray.pipeline.commit import write_commit
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_record import write_record
from flashray.pipeline.verify import Verified, verify
from tests.support.small_runs import KEYS, commit, planned, record_of, replan


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two units, both committed."""
    write_record(str(tmp_path), record_of(4))
    write_plan(str(tmp_path), 0, planned(KEYS, ["u0", "u0", "u1", "u1"]))
    commit(tmp_path, "u0", KEYS[:2])
    commit(tmp_path, "u1", KEYS[2:])
    return tmp_path


def test_a_whole_run_is_complete(run: Path):
    found = verify(str(run))
    assert found == Verified(images=4, restored=4)
    assert found.complete
    assert found.lines() == ["4 images planned, 4 restored images match their commits"]


def test_a_lost_a_changed_and_a_strange_file_are_named(run: Path):
    (run / "a.png").unlink()
    (run / "deep" / "d.png").write_bytes(b"other")
    (run / "who.png").write_bytes(b"?")
    (run / "deep" / ".DS_Store").write_bytes(b"a desktop's")
    found = verify(str(run))
    assert (found.missing, found.changed, found.strangers) == (["a.png"], ["deep/d.png"], ["who.png"])
    assert found.restored == 2
    assert not found.sound
    assert "1 missing: a.png" in found.lines()
    assert found.lines()[-1] == "the same command with --verify makes missing and changed images again"


def test_an_image_with_a_lost_and_a_changed_file_counts_once(tmp_path: Path):
    run = tmp_path
    write_record(str(run), record_of(1))
    write_plan(str(run), 0, planned(KEYS[:1], ["u2"]))
    names = ["_flashray/samples/a.png/1.png", "_flashray/samples/a.png/spread.png"]
    samples = [{"name": name, "size": 1, "sha256": "0"} for name in names]
    row = {"key": "a.png", "status": "ok", "nfe": 1, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (run / "a.png").write_bytes(b"x")
    write_commit(str(run), "u2", [row | {"samples": samples}])
    (run / names[0]).parent.mkdir(parents=True)
    (run / names[0]).write_bytes(b"other")
    found = verify(str(run))
    assert (found.missing, found.changed, found.restored) == (["a.png"], ["a.png"], 0)


def test_an_image_that_two_units_committed_is_a_duplicate(run: Path):
    replan(run, 0, planned([*KEYS, "a.png"], ["u0", "u0", "u1", "u1", "u1"]))
    (run / "_flashray" / "commits" / "u1.parquet").unlink()
    commit(run, "u1", [*KEYS[2:], "a.png"])
    assert verify(str(run)).duplicated == ["a.png"]


def test_what_is_failed_or_still_to_do_is_sound_and_not_complete(run: Path):
    replan(run, 0, planned([*KEYS, "f.png", "g.png", "h.png"], ["u0", "u0", "u1", "u1", None, "u2", "u3"]))
    commit(run, "u3", ["h.png"], failed=("h.png",))
    (run / "g.png").write_bytes(b"its unit was cut short before its commit")
    found = verify(str(run))
    assert (found.failed, found.pending, found.strangers) == (["f.png", "h.png"], ["g.png"], [])
    assert found.sound
    assert not found.complete


def test_a_retried_image_counts_once_and_by_its_later_commit(run: Path):
    write_record(str(run), record_of(5))
    replan(run, 0, planned([*KEYS, "f.png"], ["u0", "u0", "u1", "u1", "u2"]))
    commit(run, "u2", ["f.png"], failed=("f.png",))
    assert verify(str(run)).failed == ["f.png"]
    write_plan(str(run), 1, planned(["f.png"], ["r0"]))
    commit(run, "r0", ["f.png"])
    assert verify(str(run)) == Verified(images=5, restored=5)


def test_a_damaged_shard_is_no_stranger_while_its_images_are_restored_into_others(tmp_path: Path):
    config = {"io": {"format": "same", "shards": "parquet"}}
    write_record(str(tmp_path), record_of(2) | {"config": config})
    write_plan(str(tmp_path), 0, planned(KEYS[:2], ["00-00000000"] * 2))
    rows = [{"key": key, "status": "ok", "size": 1, "shard_size": 9, "shard_sha256": "0"} for key in KEYS[:2]]
    write_commit(str(tmp_path), "00-00000000", rows)
    for name in ("00-00000000.parquet", "00-00000007.parquet"):
        (tmp_path / name).write_bytes(b"cut")
    write_plan(str(tmp_path), 1, planned(KEYS[:2], ["01-00000000"] * 2))
    found = verify(str(tmp_path))
    assert (found.pending, found.strangers) == (KEYS[:2], ["00-00000007.parquet"])


def test_an_image_of_the_archive_that_no_plan_names_is_pending(run: Path):
    write_record(str(run), record_of(6))
    found = verify(str(run))
    assert found.unplanned == 2
    assert not found.complete
    assert "2 images of the archive are in no plan" in found.lines()


def test_no_run_and_no_plan_are_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no run; name the output"):
        verify(str(tmp_path))
    write_record(str(tmp_path), record_of(1))
    with pytest.raises(ConfigError, match="has no plan yet"):
        verify(str(tmp_path))


def test_the_command_says_it_by_its_exit_code(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "complete"
    (run / "a.png").write_bytes(b"")
    assert main(["verify", "--output", str(run)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "NOT SOUND"


def test_images_of_another_format_have_its_suffix(tmp_path: Path):
    record = record_of(2) | {"config": {"io": {"format": "png"}}}
    write_record(str(tmp_path), record)
    write_plan(str(tmp_path), 0, planned(["a.jpg", "b.png"], ["u0", "u0"]))
    rows = []
    for key, name in (("a.jpg", "a.jpg.png"), ("b.png", "b.png")):
        (tmp_path / name).write_bytes(key.encode())
        rows.append({"key": key, "status": "ok", "sha256": hashlib.sha256(key.encode()).hexdigest()})
    write_commit(str(tmp_path), "u0", rows)
    assert verify(str(tmp_path)) == Verified(images=2, restored=2)
