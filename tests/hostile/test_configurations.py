"""Recipes, configuration files and command lines that are wrong: refused with exit code 2, at once, by name."""

from __future__ import annotations

import dataclasses
import math
import posixpath
from pathlib import Path
from typing import Any

import pytest

from flashray.build import strict
from flashray.cli import main
from flashray.degradations import DEGRADATIONS, make_degradation
from flashray.errors import ConfigError
from flashray.pipeline.options import parse_run
from flashray.pipeline.run_config import RunConfig, check
from flashray.recipe import Recipe
from flashray.solvers import SOLVERS, make_solver
from flashray.yaml_text import read_yaml
from tests.support.runs import changed, config_of

RECIPE = "gaussian_blur_flash_proximal"
SETTINGS = [
    (registry, make, name, field.name)
    for registry, make in ((DEGRADATIONS, make_degradation), (SOLVERS, make_solver))
    for name, cls in registry.items()
    for field in dataclasses.fields(cls)
]


def bomb(levels: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


BAD_YAML: dict[str, bytes] = {
    "alias bomb": bomb().encode(),
    "self-alias": b"degradation: &a {settings: *a}",
    "alias of a list": b"degradation: {settings: {std: &a [*a]}}",
    "binary": bytes(range(256)),
    "another encoding": "seed: 1".encode("utf-16"),
    "latin-1": b"prior: caf\xe9",
    "NUL": b"prior: a\0b",
    "escaped NUL": b'prior: "a\\0b"',
    "half a character": b'prior: "\\ud800"',
    "doubled key": b"seed: 1\nseed: 2\n",
    "doubled key inside": b"solver: {steps: 1, steps: 2}",
    "deep": b"[" * 100_000,
    "deep mappings": b"{a: " * 5_000,
    "many digits": b"seed: " + b"9" * 5_000,
    "month 99": b"seed: 2024-99-99",
    "a list as key": b"{[1]: 2}",
    "keys of two kinds": b"{1: 2, a: 3}",
    "a tag": b"!!python/object/apply:os.system [ls]",
    "large": b"# " + b"x" * 2**21,
    "a key of settings that is a number": b"degradation: {settings: {1: 2}}",
    "a preset that is a list": b"degradation: {settings: {preset: [1]}}",
    "infinite": b"solver: {eta: .inf}",
    "not a number": b"start: {c: .nan}",
    "not a number inside": b"degradation: {noise_std: [.nan, 1]}",
    "nothing where a mapping is": b"degradation: null",
    "a number where a name is": b"solver: {name: 3}",
}


@pytest.mark.parametrize("option", ["--recipe", "--config"])
@pytest.mark.parametrize("how", BAD_YAML)
@pytest.mark.timeout(20)
def test_row_25_bad_yaml(tmp_path: Path, how: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(BAD_YAML[how])
    argv = ["restore", str(tmp_path / "photos"), str(tmp_path / "out"), option, str(path)]
    argv += ["--recipe", RECIPE] if option == "--config" else []
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert len(said) < 2_000


@pytest.mark.parametrize("value", ["&a [*a]", "{a: &b [*b]}", "{a: 1, a: 2}", "!!python/name:os.system", "[" * 3000])
@pytest.mark.parametrize("option", ["--solver.settings", "--limit", "--metrics", "--degradation.noise_std", "--seed"])
def test_row_25_yaml_on_the_command_line(value: str, option: str) -> None:
    with pytest.raises(ConfigError):
        parse_run(["/a", "/o", "--recipe", RECIPE, option, value])


@pytest.mark.parametrize("name", ["[2019] Photos", "[1].csv", "{draft} 2", "!new", "& more"])
def test_names_that_begin_like_yaml_are_taken_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_run([name, "/o", "--recipe", RECIPE, "--tracking.experiment", name])
    assert config.tracking.experiment == posixpath.basename(config.io.archive) == name
    assert main(["verify", name]) == 2
    assert f"{name} holds no run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--metrics"):
        parse_run(["/a", "/o", "--recipe", RECIPE, "--metrics", name])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("value", ["[" * 100_000, f"{{{', '.join(bomb().splitlines())}}}", "&a [*a] Photos"])
def test_names_that_unfold_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="is not a YAML file"):
        parse_run(["/a", "/o", "--recipe", RECIPE, "--tracking.experiment", value])


@pytest.mark.parametrize("path", ["a\0b", "caf\udce9", "s3://bucket/a\0b"])
@pytest.mark.parametrize("name", ["archive", "output", "manifest", "references"])
def test_row_25_paths_that_no_record_can_hold(path: str, name: str) -> None:
    with pytest.raises(ConfigError, match="NUL or bytes that are not UTF-8"):
        check(changed(config_of(), **{name: path}))


def test_row_25_plain_yaml_is_read() -> None:
    assert read_yaml(b"\xef\xbb\xbfa: [1e-3, .5e2, -1E4, 1.5, x]\n", "t") == {"a": [1e-3, 50.0, -1e4, 1.5, "x"]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_row_22_numbers_that_are_not_finite(value: float) -> None:
    asked = config_of()
    numbers = [
        (section, field.name)
        for section in ("io", "resources", "policy", "tracking")
        for field in dataclasses.fields(getattr(asked, section))
        if "float" in str(field.type)
    ]
    assert len(numbers) >= 5
    for section, name in numbers:
        with pytest.raises(ConfigError, match=name):
            check(asked.replaced(section, **{name: value}))
    for argv in (
        *(["--policy.budget_seconds", str(value)], ["--tracking.patience", str(value)]),
        *(["--solver.eta", str(value)], ["--start.c", str(value)], ["--start.sigma_scale", str(value)]),
        *(["--degradation.noise_std", str(value)], ["--degradation.noise_std", f"[0, {value}]"]),
        *(
            ["--solver.settings.rho", f".{str(value)[-3:]}"],
            ["--degradation.settings.std", f"[0.1, .{str(value)[-3:]}]"],
        ),
        *(["--max-megapixels", str(value)], ["--autoscale-seconds", str(value)]),
    ):
        assert main(["restore", "/a", "/o", "--recipe", RECIPE, *argv]) == 2, argv
    with pytest.raises(ConfigError, match="is not finite"):
        strict(Recipe, {"solver": {"eta": value}}, "recipe")


WRONG: list[Any] = [
    *(None, [], [1], [1, 2, 3], ["a", "b"], "x", "", {}, {"a": 1}, [[1], [2]], [1, None], b"x", 1j),
    *(math.nan, math.inf, [math.nan, 1], [0, math.inf]),
]


@pytest.mark.parametrize(("registry", "make", "name", "field"), SETTINGS, ids=lambda one: str(one)[:20])
def test_row_28_settings_of_the_wrong_shape(registry: Any, make: Any, name: str, field: str) -> None:
    """Each is refused, and the message names the setting and what it should be."""
    for value in WRONG:
        if isinstance(value, str) and field == "weights":
            continue
        with pytest.raises(ConfigError) as caught:
            make(name, {field: value})
        said = str(caught.value)
        assert said.startswith(f"{'degradation' if registry is DEGRADATIONS else 'solver'} {name}, {field}: "), said
        assert any(words in said for words in ("give ", "is not of type")), said


def test_row_28_the_expected_form_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"gaussian_blur, std: \[1, 2, 3\] is no range; give \[low, high\], two number"
    ):
        make_degradation("gaussian_blur", {"std": [1, 2, 3]})
    assert make_degradation("gaussian_blur", {"std": [1, 2]}).std == (1.0, 2.0)  # type: ignore[attr-defined]
    assert isinstance(check(config_of()), RunConfig)
