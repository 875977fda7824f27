"""A run's configuration from a command line, or from Python's keyword arguments."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from flashray.errors import ConfigError
from flashray.option_parser import Options, make_parser, parse
from flashray.pipeline.run_config import IoConfig, PolicyConfig, ResourcesConfig, RunConfig, check, flatten
from flashray.recipe import (
    WITH_SETTINGS,
    DegradationConfig,
    FusionConfig,
    Recipe,
    SolverConfig,
    read_recipe,
    without_settings_of_others,
)
from flashray.severity.start import Start
from flashray.tracking.tracking_config import TrackingConfig
from flashray.yaml_text import read_yaml

_RECIPE = {"degradation": DegradationConfig, "start": Start, "solver": SolverConfig, "fusion": FusionConfig}
_RUN = {"io": IoConfig, "resources": ResourcesConfig, "policy": PolicyConfig, "tracking": TrackingConfig}
_SHORT = [
    *(
        f"{section}.{field.name}"
        for section in ("io", "resources", "policy")
        for field in dataclasses.fields(_RUN[section])
    ),
    "tracking.tracking_uri",
    "start.strength",
]
DEFAULT_RECIPE = "photo"
_FORMATS = {"jpg": "jpeg", "tif": "tiff"}  # suffixes that people give as formats


@dataclasses.dataclass(frozen=True)
class _Top:
    """The options of the top level.

    Args:
        recipe: a shipped recipe's name, or the path of a recipe file; photo, for unknown damage, by default.
        prior: bundled, a folder in diffusers' layout, a hub id such as hf://owner/name@revision, or a URI such as
            s3://bucket/folder.
        seed: all random numbers follow from it and the images' keys.
    """

    recipe: str | None = None
    prior: str = "bundled"
    seed: int = 0


SECTIONS: dict[str, type[Any]] = {"": _Top, **_RUN, **_RECIPE}
OPTIONS = Options.of(SECTIONS, _SHORT)


def parse_run(argv: Sequence[str]) -> RunConfig:
    """The checked configuration of a command line `IN OUT [--option value …]`.

    ConfigError for an unknown option or recipe (with the nearest names), a value of the wrong type, or a configuration
    that cannot be carried out.
    """
    return _run_config(OPTIONS.normalise(argv, ("io.archive", "io.output")), "flashray restore")


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """The checked configuration of keyword arguments: short names, dotted names, or nested mappings."""
    argv: list[str] = []
    for name, value in flatten(values).items():
        argv += [f"--{OPTIONS.resolve(name)}", _text(value)]
    return _run_config(argv, "flashray.restore")


def parser_of(prog: str = "flashray restore") -> Any:
    """The parser behind `--help-all`."""
    return make_parser(prog, SECTIONS, "Restore an archive of degraded images.")


def _run_config(argv: Sequence[str], prog: str) -> RunConfig:
    argv = [_FORMATS.get(value, value) if name == "--io.format" else value for name, value in pairwise(["", *argv])]
    given = {name[2:]: value for name, value in pairwise(argv) if name.startswith("--")}
    if "--print_config" not in argv and "config" not in given:
        for name, what in (("io.archive", "the archive (IN)"), ("io.output", "the output (OUT)")):
            if name not in given:
                raise ConfigError(f"{what} is missing: {prog} IN OUT")
    parser = parser_of(prog)
    configured = _configured(given.get("config", ""))
    named = given.get("recipe") or configured.get("recipe") or DEFAULT_RECIPE
    names: dict[str, Any] = {}
    for section in WITH_SETTINGS:
        typed, inner = given.get(f"{section}.name"), configured.get(section)
        inner = inner if isinstance(inner, dict) else {}
        names[section] = typed or inner.get("name")
        if typed is not None and inner.get("name") not in (None, typed):  # the file's settings are the other one's
            at = argv.index("--config") + 2
            argv[at:at] = [f"--{section}.settings", "{}"]
    parser.set_defaults(dict(_leaves(without_settings_of_others(read_recipe(named), names))))
    values = parse(parser, argv)
    recipe = Recipe(**{name: getattr(values, name) for name in (*_RECIPE, "prior", "seed")})
    return check(RunConfig(recipe=recipe, **{name: getattr(values, name) for name in _RUN}))


def _configured(path: str) -> dict[str, Any]:
    """The values of a configuration file; what is wrong with them is said when they are parsed."""
    values = read_yaml(Path(path).read_bytes(), f"config {path}") if os.path.isfile(path) else None
    return values if isinstance(values, dict) and isinstance(values.get("recipe"), str | None) else {}


def _leaves(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """A recipe file's values by the parser's names; `settings` is one value."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        if name in _RECIPE:
            found += [(f"{name}.{key}", one) for key, one in value.items()]
        else:
            found.append((name, value))
    return found


def _text(value: Any) -> str:
    """A value in the form of a command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, list | tuple) else str(value)
