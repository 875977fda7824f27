from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashray.cli import VERBS, exit_code, main
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


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_a_help_that_fits_a_screen(verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flashray {verb}")
    assert "example" in text
    assert len(text.splitlines()) <= 45
    assert max(map(len, text.splitlines())) <= 110


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in VERBS)
    assert main([]) == 2


def test_an_unknown_verb_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["restor", "a", "b"]) == 2
    assert "'restor' is not a verb of flashray (did you mean restore" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["verify", "report", "replay"])
def test_an_output_without_a_run_is_exit_code_2(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([verb, str(tmp_path)]) == 2
    assert "holds no run; name the output of flashray restore" in capsys.readouterr().err


def test_training_needs_to_know_what(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "severitty"]) == 2
    assert "give prior or severity" in capsys.readouterr().err
    assert main(["train", "severity", "--photoz", "x"]) == 2
    assert "--photoz is not an option (did you mean --photos" in capsys.readouterr().err


def test_parts_of_an_option_that_may_be_none_are_options_too():
    """`autoencoder` is a configuration or the word none."""
    from flashray.option_parser import Options
    from flashray.training.train_prior import TrainPriorConfig

    options = Options.of({"": TrainPriorConfig})
    assert options.resolve("autoencoder.latent-channels") == "autoencoder.latent_channels"
    assert options.resolve("autoencoder") == "autoencoder"
    line = ["--autoencoder.latent-channels", "8", "--denoiser.layers=2"]
    assert options.normalise(line) == ["--autoencoder.latent_channels", "8", "--denoiser.layers", "2"]
    with pytest.raises(ConfigError, match=r"autoencoder.latent-chanels is not an option \(did you mean --autoencoder"):
        options.resolve("autoencoder.latent-chanels")


def test_importing_the_package_is_light():
    """Neither torch nor Ray, MLflow, diffusers or pyarrow are loaded before they are used."""
    code = "import sys, flashray, flashray.cli; print(sorted(set(sys.modules) & set(sys.argv[1:])), len(sys.modules))"
    heavy = ["torch", "ray", "mlflow", "diffusers", "pyarrow", "numpy", "PIL", "fsspec", "jsonargparse", "yaml"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    loaded, count = done.stdout.rsplit(" ", 1)
    assert loaded == "[]"
    assert int(count) < 250
