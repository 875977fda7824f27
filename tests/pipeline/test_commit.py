"""Commit markers: created once, whole, and read back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashray.pipeline.commit import COMMIT, committed_units, read_commits, write_commit


def row(key: str, **values: object) -> dict[str, object]:
    return {"key": key, "part": 0, "status": "ok", "nfe": 3, "psnr": 30.5} | values


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_the_first_writer_wins(output: str) -> None:
    assert committed_units(output) == set()
    assert write_commit(output, "00-00000001", [row("a"), row("b", status="error", error="too dark", psnr=None)])
    assert not write_commit(output, "00-00000001", [row("other")])
    assert write_commit(output, "00-00000000", [row("c")])
    assert committed_units(output) == {"00-00000000", "00-00000001"}
    table = read_commits(output, committed_units(output))
    assert table["key"].to_pylist() == ["c", "a", "b"]
    assert table["unit_id"].to_pylist() == ["00-00000000", "00-00000001", "00-00000001"]
    assert table["error"].to_pylist() == [None, None, "too dark"]
    assert table["psnr"].to_pylist() == [30.5, 30.5, None]
    assert table.schema.names == [*COMMIT.names, "unit_id"]


def test_no_commits_are_an_empty_table(tmp_path: Path) -> None:
    table = read_commits(str(tmp_path), [])
    assert len(table) == 0
    assert table.schema.names == [*COMMIT.names, "unit_id"]
