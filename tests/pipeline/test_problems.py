"""What a start says of the images that somebody should look at, and of what was given in vain."""

from __future__ import annotations

import csv
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray
import torch

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline import archive as archive_module
from flashray.pipeline.archive import read_archive
from flashray.pipeline.commit import write_commit
from flashray.pipeline.open_run import open_run
from flashray.pipeline.plan import write_plan
from flashray.pipeline.problems import NAMED, first_errors, write_problems
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_record import read_record, write_record
from flashray.pipeline.run_status import RunStatus
from tests.conftest import TinyModels
from tests.support.runs import MakeConfig, config_of
from tests.support.small_runs import KEYS, commit, planned, record_of


def test_every_failure_loss_and_warning_is_in_the_list(tmp_path: Path) -> None:
    many = [f"{n:02d}.png" for n in range(NAMED + 20)]
    write_plan(str(tmp_path), 0, planned([*KEYS, *many], ["u0"] * len(KEYS) + [None] * len(many)))
    rows = [{"key": key, "status": "ok"} for key in KEYS]
    rows[0] |= {"lost": "alpha"}
    rows[1] |= {"warnings": 'a "broken" profile, taken for sRGB'}
    write_commit(str(tmp_path), "u0", rows)
    status = RunStatus.read(str(tmp_path))
    assert len(first_errors(status.failures)) == NAMED
    write_problems(str(tmp_path), status)
    with open(tmp_path / "_flashray" / "problems.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["key"] for row in found if row["kind"] == "failed"] == many
    assert [(row["key"], row["kind"], row["text"]) for row in found if row["kind"] != "failed"] == [
        (KEYS[0], "lost", "alpha"),
        (KEYS[1], "warnings", 'a "broken" profile, taken for sRGB'),
    ]


def test_references_that_are_not_there_are_refused(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"references .*nope does not exist"):
        open_run(make(archive, tmp_path / "run", references=str(tmp_path / "nope"), measurement="observed"))


def test_a_refused_overwrite_leaves_nothing(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        open_run(make(archive, mine, overwrite="mine"))
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def test_overwrite_deletes_nothing_where_a_file_is_not_the_runs(
    make: MakeConfig, archive: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    write_record(str(output), record_of(1))
    write_plan(str(output), 0, planned(KEYS[:1], ["u0"]))
    commit(output, "u0", KEYS[:1])
    (output / ".DS_Store").write_text("a desktop's")
    (output / "letter.txt").write_text("mine")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"no run wrote, such as 'letter.txt'.*nothing is deleted"):
        open_run(make(archive, output, overwrite="run"))
    assert all(path.read_bytes() == data for path, data in before.items())
    (output / "letter.txt").unlink()
    open_run(make(archive, output, overwrite="run"))
    assert not (before.keys() - {output / ".DS_Store", output / "letter.txt"}) & set(output.rglob("*"))
    assert (output / ".DS_Store").exists()


def test_an_interrupted_run_that_began_with_overwrite_goes_on(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = make(archive, output, overwrite="run")
    open_run(config).open_record()
    begun = read_record(str(output))
    assert begun is not None
    assert begun["overwriting"]
    open_run(config)
    assert read_record(str(output)) == begun
    open_run(make(archive, output, overwrite="run", seed=7))  # another command deletes it
    assert read_record(str(output)) is None
    for finished in ({name: value for name, value in begun.items() if name != "overwriting"}, begun):
        open_run(config).open_record()
        write_record(str(output), finished)
        if finished is begun:  # killed after its summary, before its run.json
            storage.put_bytes(run_uri(str(output), "summary.json"), b"{}")
        open_run(config)
        assert read_record(str(output)) is None


@pytest.mark.parametrize(("address", "there", "refused"), [(None, False, True), ("", False, True), (None, True, False)])
def test_overwrite_deletes_nothing_where_the_device_is_not_there(
    make: MakeConfig,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    there: bool,
    refused: bool,
) -> None:
    output = tmp_path / "run"
    write_record(str(output), record_of(1))
    write_plan(str(output), 0, planned(KEYS[:1], ["u0"]))
    commit(output, "u0", KEYS[:1])
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    config = make(archive, output, overwrite="run", device="cuda")
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU") if refused else nullcontext():
        open_run(config)
    assert (output / KEYS[0]).exists() is refused
    if refused:  # on a cluster other machines may have GPUs
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
        open_run(config)
        assert not (output / KEYS[0]).exists()


def test_addresses_beyond_what_a_column_holds_are_refused(
    tiny_models: TinyModels, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "_LETTERS", 100)
    with pytest.raises(ConfigError, match="restore it in several runs"):
        read_archive(config_of(str(archive), "/o", measurement="simulated"))


def test_a_file_without_a_suffix_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8")
    with pytest.raises(ConfigError, match="photo does not have an image's suffix; rename it"):
        read_archive(config_of(str(tmp_path / "photo"), "/o", measurement="simulated"))
