"""Names that try to look like something else when they are printed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flashray.cli import exit_code, main
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_record import write_record
from flashray.report.markdown import to_markdown
from flashray.shown import shown
from tests.support.small_runs import commit, planned, record_of

EVIL = "a\n4 images planned, 4 restored images match their commits\ncomplete\x1b[2J\r\u202egnp.exe"
SAFE = r"a\n4 images planned, 4 restored images match their commits\ncomplete\x1b[2J\r\u202egnp.exe"


def test_row_27_control_characters_are_escaped() -> None:
    assert shown(EVIL) == SAFE
    assert shown("más фото 照片 👍.png") == "más фото 照片 👍.png"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x2066, 0xFEFF, 0xD800):
        assert shown(chr(code)).isascii(), hex(code)
        assert shown(chr(code)).isprintable()


def test_row_27_verify_cannot_be_made_to_say_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["good.png", f"{EVIL}.png"]
    write_record(str(tmp_path), record_of(2))
    write_plan(str(tmp_path), 0, planned(keys, ["u0", "u0"]))
    commit(tmp_path, "u0", keys, failed=(keys[1],))
    (tmp_path / f"{EVIL}.txt").write_bytes(b"?")
    assert main(["verify", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "NOT SOUND"
    assert "complete" not in lines
    assert f"1 failed: {SAFE}.png" in lines
    assert not any("\x1b" in line for line in lines)
    (tmp_path / keys[1]).write_bytes(b"left behind")
    assert main(["verify", str(tmp_path), "--clean"]) == 1
    assert "complete" not in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("kind", [ConfigError, FlashrayError, OSError])
def test_row_27_errors_and_warnings_are_one_line(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise kind(f"archive {EVIL} is bad")

    exit_code(fail)
    assert capsys.readouterr().err == f"error: archive {SAFE} is bad\n"


def test_row_27_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from flashray.cli import OneLine

    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s: %(message)s"))
    record = logging.LogRecord("flashray", logging.ERROR, "", 0, "  %s: %s", (EVIL, "diverged"), None)
    assert handler.format(record) == f"ERROR:   {SAFE}: diverged"


def test_row_27_markdown() -> None:
    table = to_markdown([{"run": EVIL + "|x<script>", "psnr": "3"}])
    assert len(table.splitlines()) == 3
    assert table.splitlines()[2] == rf"| {SAFE}\|x\<script> | 3 |"
