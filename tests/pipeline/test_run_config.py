"""The command line, recipes, and the checks before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashray.errors import ConfigError
from flashray.pipeline.run_config import (
    DegradationConfig,
    ReconstructConfig,
    SolverConfig,
    StartConfig,
    TrackingConfig,
    check,
    parse_args,
    to_dict,
    to_yaml,
)

RECIPES = Path(__file__).parents[2] / "flashray" / "recipes"
PLACES = ["--archive", "/data/photos", "--output", "/data/run"]


def config(**values: Any) -> ReconstructConfig:
    return ReconstructConfig(**{"archive": "/data/photos", "output": "/data/run"} | values)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command line that ends with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        parse_args([*PLACES, *argv])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults() -> None:
    assert parse_args(PLACES) == check(config())


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*latent_dps.yaml")), ids=lambda path: path.stem)
def test_recipes_are_sound(recipe: Path) -> None:
    parsed = parse_args(["--config", str(recipe), *PLACES])
    named = yaml.safe_load(recipe.read_text())
    assert parsed.solver.name == named["solver"]["name"]
    assert parsed.start.mode in recipe.stem


def test_the_command_line_overrides_the_recipe() -> None:
    recipe = ["--config", str(RECIPES / "gaussian_blur_flash_latent_dps.yaml")]
    given = ["--solver.settings.dc_step", "2.5", "--degradation.settings.std", "[1, 2]", "--start.mode=full"]
    parsed = parse_args([*recipe, *PLACES, *given])
    assert parsed.solver.settings["dc_step"] == 2.5
    assert parsed.degradation.settings["std"] == [1, 2]
    assert parsed.degradation.settings["kernel_size"] == 61
    assert parsed.start.mode == "full"


def test_flags_stand_alone_and_take_hyphens() -> None:
    parsed = parse_args([*PLACES, "--plan_only", "--retry-failed", "--limit", "5"])
    assert (parsed.plan_only, parsed.retry_failed, parsed.limit) == (True, True, 5)
    assert parse_args([*PLACES, "--plan_only", "false"]).plan_only is False
    assert parse_args([*PLACES, "--plan-only=true"]).plan_only is True


def test_an_unknown_key_of_a_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("solver: {name: latent_dps, stepz: 100}\n")
    assert "stepz" in refused(capsys, "--config", str(recipe))
    recipe.write_text("solvr: {name: latent_dps}\n")
    assert "solvr" in refused(capsys, "--config", str(recipe))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--solver.stepz", "3"], ["stepz"]),
        (["--solver.name", "magic"], ["magic", "latent_dps"]),
        (["--degradation.name", "fog"], ["fog", "gaussian_blur"]),
        (["--degradation.settings.strength", "3"], ["strength", "kernel_size"]),
        (["--solver.settings.dc_step", "-1"], ["dc_step"]),
        (["--degradation.noise_std", "-0.1"], ["noise_std"]),
        (["--degradation.noise_std", "[0.2, 0.1]"], ["noise_std"]),
        (["--slots", "-1"], ["slots"]),
        (["--limit", "0"], ["limit"]),
        (["--unit_images", "0"], ["unit_images"]),
        (["--budget_seconds", "0"], ["budget_seconds", "positive"]),
        (["--budget_seconds", "60", "--budget_gpu_hours", "1"], ["budget_seconds and budget_gpu_hours", "one budget"]),
        (["--budget_gpu_hours", "1", "--start.mode", "full"], ["budget_gpu_hours", "full chain"]),
        (["--autoscale_seconds", "60", "--device", "cuda"], ["autoscale_seconds", "solver_actors"]),
        (["--autoscale_seconds", "60", "--solver_actors", "2"], ["autoscale_seconds", "--device"]),
        (["--solver.eta", "1.5"], ["eta"]),
        (["--start.c", "0"], ["start.c"]),
        (["--fit", "stretch"], ["fit", "resize"]),
        (["--metrics", "[psnr, beauty]"], ["beauty", "ssim"]),
        (["--measurement", "simulated", "--references", "/data/clean"], ["references"]),
        (["--output", "/data/photos/restored"], ["inside the archive", "/data/photos/restored"]),
        (["--output", "/data/photos"], ["inside the archive"]),
        (["--archive", "/data/run/reconstructions"], ["reconstructions"]),
        (["--archive", "nonsense://bucket/photos"], ["nonsense://"]),
        (["--archive", ""], ["archive is empty"]),
    ],
)
def test_what_is_wrong_is_named(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, *argv)
    assert all(word in message for word in words), message


def test_archive_and_output_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_args(["--archive", "/data/photos"])
    assert caught.value.code == 2
    assert "output" in capsys.readouterr().err


def test_a_submitted_job_needs_absolute_places(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_args([*PLACES, "--output", "run"]).output == str(Path("run").absolute())
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    message = refused(capsys, "--output", "run")
    assert "temporary copy" in message
    assert "absolute path" in message
    assert parse_args([*PLACES, "--output", "s3://bucket/run"]).output == "s3://bucket/run"


def test_print_config_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*PLACES, "--solver.steps", "50", "--degradation.settings.std", "[1, 2]"]
    with pytest.raises(SystemExit) as caught:
        parse_args([*argv, "--print_config"])
    assert caught.value.code == 0
    recipe = tmp_path / "printed.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert parse_args(["--config", str(recipe)]) == parse_args(argv)


def test_the_resolved_configuration_comes_back(tmp_path: Path) -> None:
    original = check(
        config(
            degradation=DegradationConfig(settings={"std": [0.5, 1.5]}, noise_std=[0.01, 0.1]),
            start=StartConfig(formula="paper", c=1.2),
            solver=SolverConfig(steps=100, settings={"dc_step": 0.5}),
            limit=7,
        )
    )
    recipe = tmp_path / "resolved.yaml"
    recipe.write_text(to_yaml(original))
    assert parse_args(["--config", str(recipe)]) == original


def test_no_password_is_written_down() -> None:
    secret = config(mlflow=TrackingConfig(tracking_uri="https://me:hunter2@mlflow.example/"))
    assert "hunter2" not in to_yaml(secret)
    assert to_dict(secret)["mlflow"]["tracking_uri"] == "https://***@mlflow.example/"


def test_a_nonlinear_degradation_refuses_a_solver_that_needs_an_adjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashray.degradations import DEGRADATIONS
    from flashray.solvers import SOLVERS

    monkeypatch.setattr(DEGRADATIONS["gaussian_blur"], "linear", False)
    assert check(config())
    monkeypatch.setattr(SOLVERS["latent_dps"], "needs_adjoint", True)
    with pytest.raises(ConfigError, match="adjoint"):
        check(config())


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().seed = 1  # type: ignore[misc]


def test_presets_and_weights_of_a_degradation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family = ["--degradation.name", "random_inpainting", "--degradation.settings"]
    assert parse_args([*PLACES, *family, "{preset: paper_test}"]).degradation.settings == {"preset": "paper_test"}
    assert "known: paper_train, paper_test" in refused(capsys, *family, "{preset: other}")
    monkeypatch.chdir(tmp_path)
    wizard = ["--degradation.name", "kernel_wizard", "--degradation.settings", "{weights: wizard.pth}"]
    assert "wizard.pth' is no file" in refused(capsys, *wizard)
    (tmp_path / "wizard.pth").touch()
    assert parse_args([*PLACES, *wizard]).degradation.settings == {"weights": str(tmp_path / "wizard.pth")}


def test_a_run_is_overwritten_only_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [f"--archive={tmp_path}/archive", f"--output={tmp_path}/runs/monday"]
    assert parse_args([*argv, "--overwrite=monday"]).overwrite == "monday"
    for wrong in ("tuesday", "true", f"{tmp_path}/runs/monday"):
        with pytest.raises(SystemExit) as caught:
            parse_args([*argv, f"--overwrite={wrong}"])
        assert caught.value.code == 2
        assert "give --overwrite monday" in capsys.readouterr().err
