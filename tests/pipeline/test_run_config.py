"""The command line of a run, recipes, and the checks before any work."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashray.cli import main
from flashray.errors import ConfigError
from flashray.pipeline.options import parse_run, run_config
from flashray.pipeline.run_config import RunConfig, check, to_dict, to_yaml
from flashray.recipe import DegradationConfig, SolverConfig, load_recipe, recipe_names
from flashray.severity import Start
from flashray.solvers import make_solver
from flashray.tracking.tracking_config import TrackingConfig
from tests.support.runs import config_of

RECIPE = "gaussian_blur_flash_latent_dps"
ARGUMENTS = ["/data/photos", "/data/run", "--recipe", RECIPE]


def refused(*argv: str) -> str:
    """The message of a command line that is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_run([*ARGUMENTS, *argv])
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_sound(name: str) -> None:
    recipe = load_recipe(name)
    if name != "photo":  # the default's name says what it is for
        assert recipe.solver.name in name
        assert recipe.start.mode in name
    assert recipe.degradation.name in name
    assert parse_run(["/a", "/o", "--recipe", name]).recipe == recipe


def test_the_command_line_overrides_the_recipe() -> None:
    given = ["--solver.settings.dc_step", "2.5", "--degradation.settings.std", "[1, 2]", "--start.mode=full"]
    recipe = parse_run([*ARGUMENTS, *given, "--seed", "3", "--prior", "org/name"]).recipe
    assert recipe.solver.settings["dc_step"] == 2.5
    assert recipe.degradation.settings["std"] == [1, 2]
    assert recipe.degradation.settings["kernel_size"] == 61
    assert (recipe.start.mode, recipe.seed, recipe.prior) == ("full", 3, "org/name")


def test_short_names_flags_and_hyphens() -> None:
    parsed = parse_run([*ARGUMENTS, "--plan_only", "--retry-failed", "--limit", "5", "--tracking-uri", "sqlite:///x"])
    assert (parsed.policy.plan_only, parsed.policy.retry_failed, parsed.policy.limit) == (True, True, 5)
    assert parsed.tracking.tracking_uri == "sqlite:///x"
    assert parse_run([*ARGUMENTS, "--plan_only", "false"]).policy.plan_only is False
    assert parse_run([*ARGUMENTS, "--plan-only=true"]).policy.plan_only is True
    assert parse_run(["--plan-only", *ARGUMENTS]).policy.plan_only is True
    assert parse_run([*ARGUMENTS, "--policy.limit", "5"]).policy.limit == 5
    assert parse_run([*ARGUMENTS, "--resources.solver-actors", "2"]).resources.solver_actors == 2
    named = ["--archive", "/data/photos", "--output", "/data/run", "--recipe", RECIPE]
    assert parse_run(named) == parse_run(ARGUMENTS)


def test_suffixes_are_formats_too() -> None:
    assert [parse_run([*ARGUMENTS, "--format", name]).io.format for name in ("jpg", "tif")] == ["jpeg", "tiff"]


def test_keyword_arguments_are_the_command_line() -> None:
    values = {"archive": "/data/photos", "output": "/data/run", "recipe": RECIPE}
    assert run_config(values) == parse_run(ARGUMENTS)
    more = {"limit": 3, "manifest": None, "metrics": ["psnr"], "plan_only": True, "solver": {"steps": 50}}
    config = run_config(values | more | {"degradation.settings.std": [1, 2]})
    assert (config.policy.limit, config.policy.plan_only, config.io.metrics) == (3, True, ["psnr"])
    assert config.recipe.solver.steps == 50
    assert config.recipe.degradation.settings["std"] == [1, 2]
    with pytest.raises(ConfigError, match="--limt is not an option"):
        run_config(values | {"limt": 3})


def test_recipes_are_given_by_name_or_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("solver: {name: proximal, steps: 20}\nstart: {sigma_scale: 0.5}\n")
    recipe = parse_run(["/a", "/o", "--recipe", str(path)]).recipe
    assert (recipe.solver.name, recipe.solver.steps, recipe.start.sigma_scale) == ("proximal", 20, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("solver: {name: latent_dps, stepz: 100}\n", ["stepz", "did you mean steps"]),
        ("solvr: {name: latent_dps}\n", ["solvr", "did you mean solver"]),
        ("solver: {steps: many}\n", ["steps", "'many' is not of type int"]),
        ("- a list\n", ["mapping of names to values"]),
        ("a: [\n", ["is not a YAML file"]),
        ("", ["mapping of names to values"]),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse_run(["/a", "/o", "--recipe", str(path)])
    assert all(word in str(caught.value) for word in [*words, str(path)]), str(caught.value)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    for name in ("gaussian_blur_flash_prox", "absent.yaml"):
        with pytest.raises(ConfigError) as caught:
            parse_run(["/a", "/o", "--recipe", name])
        assert all(shipped in str(caught.value) for shipped in recipe_names())


def test_without_a_recipe_a_run_takes_photo() -> None:
    assert parse_run(["/a", "/o"]).recipe == load_recipe("photo")
    assert parse_run(["/a", "/o", "--strength", "0.5"]).recipe.start.strength == 0.5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--solver.name", "proximal"], ["photo", "unknown damage", "unguided"]),
        (["--fusion.name", "operator"], ["photo", "unknown damage", "fusion"]),
        (["--start.mode", "full"], ["unguided", "start.mode full", "random image", "known degradation"]),
        (["--strength", "-1"], ["start.strength", "-1"]),
    ],
)
def test_what_does_not_fit_unknown_damage_is_refused(argv: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run(["/a", "/o", *argv])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_another_solver_has_its_own_settings() -> None:
    name = "gaussian_blur_flash_latent_dps"
    for recipe in (
        parse_run(["/a", "/o", "--recipe", name, "--measurement", "simulated", "--solver.name", "psld"]).recipe,
        load_recipe(name, {"solver.name": "psld"}),
        load_recipe(name, {"solver": {"name": "psld"}}),
    ):
        assert recipe.solver.make() == make_solver("psld")
        assert recipe.solver.steps == load_recipe(name).solver.steps
    changed = load_recipe(name, {"solver": {"name": "proximal", "settings": {"rho": 3.0}}})
    assert changed.solver.make() == make_solver("proximal", {"rho": 3.0})
    same = load_recipe("gaussian_blur_flash_proximal", {"solver": {"name": "proximal", "settings": {"relax": 0.5}}})
    assert same.solver.settings == load_recipe("gaussian_blur_flash_proximal").solver.settings | {"relax": 0.5}
    assert load_recipe(name, {"degradation": {"name": "motion_blur"}}).degradation.settings == {}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--solver.stepz", "3"], ["--solver.stepz is not an option", "did you mean --solver.steps"]),
        (["--limt", "3"], ["--limt is not an option", "did you mean --limit"]),
        (["third"], ["'third' is one argument too many"]),
        (["--limit"], ["--limit has no value"]),
        (["--limit", "1e3"], ["--limit is '1e3'; give a whole number"]),
        (["--limit="], ["--limit is ''; give a whole number"]),
        (["--strength="], ["--strength is ''; give a number"]),
        (["--fit="], ["--fit is ''; give whole, resize, crop, error"]),
        (["--limit", "many"], ["--limit is 'many'; give a whole number"]),
        (["--format", "gif"], ["--format is 'gif'; give same, png, jpeg, webp, tiff"]),
        (["--strength", "much"], ["--strength is 'much'; give a number"]),
        (["--copy-others=perhaps"], ["--copy_others is 'perhaps'; give true or false"]),
        (["--degradation.noise-std", "x"], ["--degradation.noise_std is 'x'; give a number or […, …]"]),
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
        (["--budget_seconds", ".inf"], ["budget_seconds"]),
        (["--budget_seconds", "60", "--budget_gpu_hours", "1"], ["budget_seconds and budget_gpu_hours", "one budget"]),
        (["--budget_gpu_hours", "1", "--start.mode", "full"], ["budget_gpu_hours", "full"]),
        (["--autoscale_seconds", "60", "--device", "cuda"], ["autoscale_seconds", "solver_actors"]),
        (["--autoscale_seconds", "60", "--solver_actors", "2"], ["autoscale_seconds", "--device"]),
        (["--solver.eta", "1.5"], ["eta"]),
        (["--solver.spacing", "linspace"], ["spacing", "trailing"]),
        (["--start.c", "0"], ["start.c"]),
        (["--start.mode", "fixed"], ["start.step is missing"]),
        (["--start.step", "3"], ["start.step is 3", "mode fixed"]),
        (["--start.mode", "full", "--strength", "0"], ["start.strength is 0", "start.mode full", "mode flash"]),
        (["--start.mode", "fixed", "--start.step", "5", "--strength", "0.5"], ["start.strength is 0.5", "mode flash"]),
        (["--start.mode", "full", "--start.formula", "paper", "--strength", "0.5"], ["start.strength is 0.5"]),
        (["--fit", "stretch"], ["fit", "resize"]),
        (["--format", "gif"], ["format", "png"]),
        (["--metrics", "[psnr, beauty]"], ["beauty", "ssim"]),
        (["--measurement", "simulated", "--references", "/data/clean"], ["references"]),
        (["--output", "/data/photos/restored"], ["inside the archive", "/data/photos/restored"]),
        (["--output", "/data/photos"], ["inside the archive"]),
        (["--archive", "/data/run/attempts"], ["archive /data/run/attempts lies inside the output"]),
        (["--references", "/data/run/clean"], ["references /data/run/clean lies inside the output"]),
        (["--archive", "nonsense://bucket/photos"], ["nonsense://"]),
        (["--archive", ""], ["archive is empty"]),
    ],
)
def test_what_is_wrong_is_named(argv: list[str], words: list[str]) -> None:
    message = refused(*argv)
    assert all(word in message for word in words), message


def test_archive_and_output_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", "/data/photos", "--recipe", RECIPE]) == 2
    assert "the output (OUT) is missing" in capsys.readouterr().err
    assert main(["restore"]) == 2


def test_a_submitted_job_needs_absolute_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_run([*ARGUMENTS, "--output", "run"]).io.output == str(Path("run").absolute())
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    message = refused("--output", "run")
    assert "temporary copy" in message
    assert "absolute path" in message
    assert parse_run([*ARGUMENTS, "--output", "s3://bucket/run"]).io.output == "s3://bucket/run"


def test_print_config_can_be_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*ARGUMENTS, "--solver.steps", "50", "--degradation.settings.std", "[1, 2]"]
    with pytest.raises(SystemExit) as caught:
        parse_run([*argv, "--print_config"])
    assert caught.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert parse_run(["--config", str(printed)]) == parse_run(argv)


def test_print_config_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_run([*ARGUMENTS, "--tracking-uri", "postgresql://me:hunter2@host/db", "--print_config"])
    assert "tracking_uri: postgresql://***@host/db\n" in capsys.readouterr().out


def test_a_configuration_file_changes_the_recipe_that_it_names_or_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("policy: {limit: 3}\nsolver: {steps: 50}\n")
    plain = ["/data/photos", "/data/run"]
    found, photo = parse_run([*plain, "--config", str(file)]), parse_run(plain)
    assert photo.recipe.degradation.name == "photo"
    assert found.recipe == dataclasses.replace(photo.recipe, solver=dataclasses.replace(photo.recipe.solver, steps=50))
    assert found.policy.limit == 3
    file.write_text(f"recipe: {RECIPE}\nio: {{archive: /data/photos, output: /data/run}}\n")
    assert parse_run(["--config", str(file)]).recipe == parse_run([*plain, "--recipe", RECIPE]).recipe
    assert parse_run(["--config", str(file), "--recipe", "photo"]).recipe == photo.recipe
    with pytest.raises(SystemExit):
        parse_run([*plain, "--print_config"])
    assert "name: unguided" in capsys.readouterr().out


def test_the_job_in_python_has_the_same_default_recipe() -> None:
    import flashray

    assert inspect.signature(flashray.restore).parameters["recipe"].default == "photo"
    assert run_config({"archive": "/data/photos", "output": "/data/run"}).recipe == parse_run(ARGUMENTS[:2]).recipe


def test_names_that_yaml_takes_for_nothing_are_names() -> None:
    for name in ("#1.csv", "&co.csv", "# é"):
        argv = [*ARGUMENTS, "--manifest", name, "--references", "null"]
        assert (found := parse_run(argv).io).manifest == str(Path(name).absolute())
        assert found.references is None
    assert parse_run([*ARGUMENTS, "--manifest", "#1.csv", "--manifest", "null"]).io.manifest is None


@pytest.mark.parametrize("name", ["recipe", "config", "print_config"])
def test_folders_may_be_called_as_options_are(name: str) -> None:
    found = parse_run([f"/data/{name}", "/data/run"]).recipe
    assert parse_run([name, "run"]).recipe == found
    assert parse_run(["photos", name, "--limit", "3"]).recipe == found


def test_the_resolved_configuration_can_be_written_down() -> None:
    original = check(
        config_of(
            "/data/photos",
            "/data/run",
            degradation=DegradationConfig(settings={"std": [0.5, 1.5]}, noise_std=[0.01, 0.1]),
            start=Start(formula="paper", c=1.2),
            solver=SolverConfig(steps=100, settings={"dc_step": 0.5}),
            limit=7,
        )
    )
    from flashray.build import strict

    assert strict(RunConfig, yaml.safe_load(to_yaml(original)), "run.json") == original


def test_no_password_is_written_down() -> None:
    secret = config_of(tracking=TrackingConfig(tracking_uri="https://me:hunter2@mlflow.example/"))
    assert "hunter2" not in to_yaml(secret)
    assert to_dict(secret)["tracking"]["tracking_uri"] == "https://***@mlflow.example/"


def test_a_nonlinear_degradation_refuses_a_solver_that_needs_an_adjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashray.degradations import DEGRADATIONS
    from flashray.solvers import SOLVERS

    monkeypatch.setattr(DEGRADATIONS["gaussian_blur"], "linear", False)
    assert check(config_of())
    monkeypatch.setattr(SOLVERS["latent_dps"], "needs_adjoint", True)
    with pytest.raises(ConfigError, match="adjoint"):
        check(config_of())


def test_an_operator_that_is_an_object_is_not_for_a_job() -> None:
    with pytest.raises(ConfigError, match="physics is an object, and a run is recorded in words; give"):
        check(config_of(degradation=DegradationConfig("deepinv", {"physics": object()})))


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_of().recipe = None  # type: ignore[misc, assignment]


def test_presets_and_weights_of_a_degradation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(*argv: str) -> dict[str, Any]:
        return parse_run([*ARGUMENTS, *argv]).recipe.degradation.settings

    family = ["--degradation.name", "random_inpainting", "--degradation.settings"]
    assert settings(*family, "{preset: paper_test}") == {"preset": "paper_test"}
    assert "known: paper_train, paper_test" in refused(*family, "{preset: other}")
    monkeypatch.chdir(tmp_path)
    wizard = ["--degradation.name", "kernel_wizard", "--degradation.settings", "{weights: wizard.pth}"]
    assert "wizard.pth' is no file" in refused(*wizard)
    (tmp_path / "wizard.pth").touch()
    assert settings(*wizard) == {"weights": str(tmp_path / "wizard.pth")}


def test_a_run_is_overwritten_only_by_its_name(tmp_path: Path) -> None:
    argv = [f"--archive={tmp_path}/archive", f"--output={tmp_path}/runs/monday", f"--recipe={RECIPE}"]
    assert parse_run([*argv, "--overwrite=monday"]).policy.overwrite == "monday"
    for wrong in ("tuesday", "true", f"{tmp_path}/runs/monday"):
        with pytest.raises(ConfigError, match="give --overwrite monday"):
            parse_run([*argv, f"--overwrite={wrong}"])
