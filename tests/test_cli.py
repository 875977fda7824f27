from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass

import pytest

from flashray.cli import exit_code, run
from flashray.errors import ConfigError, FlashrayError, ImageError


def failing(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("steps is 0"), 2, "error: steps is 0\n"),
        (FlashrayError("training failed"), 1, "error: training failed\n"),
        (ImageError("no image"), 1, "error: no image\n"),
        (OSError(28, "No space left on device", "/run/x"), 1, "error: [Errno 28] No space left on device: '/run/x'\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
        (SystemExit(15), 143, "terminated; the same command goes on from here\n"),  # what ray.init makes of SIGTERM
    ],
)
def test_errors_are_named_and_have_their_codes(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
):
    assert exit_code(lambda: failing(error)) == code
    assert capsys.readouterr().err == words


def test_sigterm_ends_the_work_once_and_its_clean_up_is_left_alone(capsys: pytest.CaptureFixture[str]):
    cleaned: list[str] = []

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # the impatient second one
            cleaned.append("all")
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(lambda: 0) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    try:
        assert exit_code(work) == 143
        os.kill(os.getpid(), signal.SIGTERM)  # a third changes nothing either
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cleaned == ["all"]
    assert capsys.readouterr().err == "terminated; the same command goes on from here\n"


def test_other_exits_are_left_alone():
    with pytest.raises(SystemExit, match="3"):
        exit_code(lambda: sys.exit(3))


def test_a_programming_error_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1)])
def test_what_the_work_answers_is_the_code(answer: int | None, code: int):
    assert exit_code(lambda: answer) == code


@dataclass(frozen=True)
class Config:
    """A job's."""

    photos: str
    size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size is {self.size}")


def test_a_job_gets_its_configuration_from_the_command_line(monkeypatch: pytest.MonkeyPatch):
    seen: list[Config] = []
    monkeypatch.setattr(sys, "argv", ["job", "--photos", "here", "--size=3"])
    assert run(Config, seen.append) == 0
    assert seen == [Config("here", 3)]


def test_arguments_that_the_configuration_refuses_are_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["job", "--photos", "here", "--size=0"])
    assert run(Config, lambda config: pytest.fail("started")) == 2
    assert "size is 0" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["job", "--phots", "here"])
    with pytest.raises(SystemExit) as left:
        run(Config, lambda config: pytest.fail("started"))
    assert left.value.code == 2
