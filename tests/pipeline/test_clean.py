"""Orphans are deleted, and nothing that a commit names or a pending unit will put."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline import clean as rooms
from flashray.pipeline.clean import clean
from flashray.pipeline.lease import held
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_record import write_record
from flashray.pipeline.verify import verify
from tests.pipeline.test_verify import KEYS, commit, planned


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """One unit committed with one image failed, one unit pending; and what killed writers left."""
    write_record(str(tmp_path), {"archive": {"images": 4}})
    write_plan(str(tmp_path), 0, planned(KEYS, ["u0", "u0", "u1", "u1"]))
    commit(tmp_path, "u0", KEYS[:2], failed=(KEYS[1],))
    for name in (f"{KEYS[1]}.png", f"{KEYS[2]}.png", "who.png", "deep/.flashray-12ab"):
        (tmp_path / "reconstructions" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "reconstructions" / name).write_bytes(b"left behind")
    (tmp_path / "commits" / ".flashray-34cd").write_bytes(b"half")
    return tmp_path


def test_orphans_are_deleted_and_nothing_else(run: Path):
    assert verify(str(run)).strangers == ["who"]
    gone = [Path(place).relative_to(run).as_posix() for place in clean(str(run))]
    names = ["b c.png.png", "who.png", "deep/.flashray-12ab"]
    assert sorted(gone) == sorted([*(f"reconstructions/{name}" for name in names), "commits/.flashray-34cd"])
    assert not any((run / name).exists() for name in gone)
    found = verify(str(run))
    assert (found.restored, found.pending, found.strangers) == (1, KEYS[2:], [])
    assert (run / "reconstructions" / f"{KEYS[2]}.png").exists()
    assert clean(str(run)) == []


def test_nothing_is_deleted_beside_a_driver_or_without_a_plan(
    run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    with held(str(run)), pytest.raises(FlashrayError, match="another driver is at work"):
        clean(str(run))
    assert (run / "reconstructions" / "who.png").exists()
    monkeypatch.setattr(rooms, "held", None)  # it does not come so far
    with pytest.raises(ConfigError, match=r"run\.json"):
        clean(str(tmp_path_factory.mktemp("other")))
