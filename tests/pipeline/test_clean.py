"""Orphans are deleted, and nothing that a commit names or a pending unit will put."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline import clean as module
from flashray.pipeline.clean import clean
from flashray.pipeline.lease import held
from flashray.pipeline.outputs import Layout
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_folder import RUN_FOLDER
from flashray.pipeline.run_record import write_record
from flashray.pipeline.verify import verify
from tests.support.small_runs import KEYS, commit, planned, record_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One unit committed with one image failed, one unit pending; orphans, and a file of the user's."""
    write_record(str(tmp_path), record_of(4))
    write_plan(str(tmp_path), 0, planned(KEYS, ["u0", "u0", "u1", "u1"]))
    commit(tmp_path, "u0", KEYS[:2], failed=(KEYS[1],))
    for name in (KEYS[1], KEYS[2], "mine.png", "deep/.flashray-12ab", f"{RUN_FOLDER}/commits/.flashray-34cd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"left behind")
    return tmp_path


def test_orphans_are_deleted_and_nothing_else(run: Path):
    assert verify(str(run)).strangers == ["mine.png"]
    gone = [Path(uri).relative_to(run).as_posix() for uri in clean(str(run))]
    assert sorted(gone) == sorted(["b c.png", "deep/.flashray-12ab", f"{RUN_FOLDER}/commits/.flashray-34cd"])
    assert not any((run / name).exists() for name in gone)
    found = verify(str(run))
    assert (found.restored, found.pending, found.strangers) == (1, KEYS[2:], ["mine.png"])
    assert (run / KEYS[2]).exists()
    assert (run / "mine.png").read_bytes() == b"left behind"
    assert clean(str(run)) == []


def test_nothing_is_deleted_beside_a_driver_or_without_a_plan(
    run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    with held(str(run)), pytest.raises(FlashrayError, match="another driver is at work"):
        clean(str(run))
    assert (run / KEYS[1]).exists()
    monkeypatch.setattr(module, "held", None)  # it does not come so far
    with pytest.raises(ConfigError, match="holds no run"):
        clean(str(tmp_path_factory.mktemp("other")))


def test_a_name_that_leads_out_of_the_output_is_no_file_of_the_run() -> None:
    """An archive's shard may name `../x.png`; the image is refused, and --overwrite must not delete a file there."""
    rows = planned(["../x.png", "a/../../y.png", "/z.png", *KEYS], [None, None, None, *["u0"] * len(KEYS)])
    assert Layout("/out").files(rows) == set(KEYS)
