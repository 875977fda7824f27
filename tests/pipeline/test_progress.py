"""Progress: honest counts, speed and time left."""

from __future__ import annotations

import time

import pytest

from flashray.pipeline import progress
from flashray.pipeline.progress import Progress, clock


def test_clock() -> None:
    assert [clock(s) for s in (5, 65, 7400, 273_600)] == ["0:05", "1:05", "2:03:20", "3 d 04:00"]


def test_the_line_counts_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    one = Progress("solve", 64, 6400, inside=lambda: 200)
    one.skip(14, 1400)
    one.advance(10, 800)
    now[0] = 110.0
    assert one.line() == "solve  24/64 images  cost 2,400/6,400  1.00 images/s  0:40 left"


def test_nothing_done_yet() -> None:
    assert "starting" in Progress("plan", 10).line()
    assert "1:30 left" in Progress("solve", 10, 50, expected=90.2).line()
    assert "1:30 left" in Progress("solve", 10, 50, inside=lambda: 2, expected=90.2).line()
    assert "1:30 left" not in Progress("solve", 10, 50, inside=lambda: 3, expected=90.2).line()
    late = Progress("solve", 10, 50, expected=1e-9)
    time.sleep(0.01)
    assert "starting" in late.line()  # and not 0:00 left


def test_the_workers_start_does_not_count_for_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    one = Progress("solve", 100, 1000)
    now[0] = 50.0  # of which 40 were the start
    one.advance(10, 100)
    assert "7:30 left" in one.line()
    now[0] = 60.0
    one.advance(10, 100)
    assert "1:20 left" in one.line()


def test_it_prints_lines_while_it_is_open(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.01)
    with Progress("plan", 2) as one:
        one.advance(1)
        one._closed.wait(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(line.startswith("plan  1/2 images") for line in lines[1:])
