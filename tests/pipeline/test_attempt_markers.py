"""Attempt markers: what another driver learns of units that were begun and not committed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flashray import storage
from flashray.pipeline import attempt_markers as attempts
from flashray.pipeline.attempt_markers import Past
from flashray.pipeline.run_folder import RUN_FOLDER


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_deaths_and_culprits_are_read_back(output: str) -> None:
    assert attempts.read(output, {"u0"}) == {}
    for number in (1, 2, 3):
        attempts.put(output, "u0", number)
    for image in ("a.png", "b c.png"):  # alone, one after the other: the last is to blame
        attempts.put(output, "u0", 3, image)
    attempts.put(output, "u1", 1)
    attempts.put(output, "committed", 1)
    assert attempts.read(output, {"u0", "u1", "u2"}) == {"u0": Past(3, frozenset({"b c.png"})), "u1": Past(1)}


def test_what_a_driver_stops_in_good_order_does_not_count(output: str) -> None:
    for unit, number in (("u0", 1), ("u0", 2), ("u1", 1)):
        attempts.put(output, unit, number)
    attempts.forgive(output, {"u0": 2, "u1": 1})
    assert attempts.read(output, {"u0", "u1"}) == {"u0": Past(1)}
    attempts.forget(output)
    assert storage.list_files(output) == []


def test_a_marker_that_cannot_be_put_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / RUN_FOLDER).mkdir()
    (tmp_path / RUN_FOLDER / "attempts").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        attempts.put(str(tmp_path), "u0", 1)
    assert "no attempt marker for unit u0" in caplog.text
