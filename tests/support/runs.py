"""Configurations of runs by their fields' own names, and what a run leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashray import storage
from flashray.pipeline.run_config import IoConfig, PolicyConfig, ResourcesConfig, RunConfig
from flashray.pipeline.run_folder import run_files, run_uri
from flashray.recipe import Recipe

MakeConfig = Callable[..., RunConfig]  # (archive, output, **fields)
_SECTIONS = {"io": IoConfig, "recipe": Recipe, "resources": ResourcesConfig, "policy": PolicyConfig}
_SECTION_OF = {field.name: name for name, cls in _SECTIONS.items() for field in dataclasses.fields(cls)}


def config_of(archive: str | Path = "/a", output: str | Path = "/o", **values: Any) -> RunConfig:
    """An unchecked configuration; each value goes to the section that has a field of its name."""
    return changed(RunConfig(IoConfig(str(archive), str(output))), **values)


def changed(config: RunConfig, **values: Any) -> RunConfig:
    """The configuration with these fields changed, whatever section they are in."""
    for name, value in values.items():
        if name == "tracking":
            config = dataclasses.replace(config, tracking=value)
        else:
            config = config.replaced(_SECTION_OF[name], **{name: value})
    return config


def restored(output: str | Path) -> dict[str, bytes]:
    """The restored images by their names."""
    names = {entry.key for entry in storage.list_files(str(output))}
    return {name: storage.read_bytes(storage.join(str(output), name)) for name in sorted(names - run_files(names))}


def record(output: str | Path) -> Path:
    """The folder of a local run's own files."""
    return Path(run_uri(str(output)))


def summary_of(output: str | Path) -> dict[str, Any]:
    """summary.json."""
    found: dict[str, Any] = json.loads(storage.read_bytes(run_uri(str(output), "summary.json")))
    return found


def flat_numbers(found: dict[str, Any]) -> dict[str, float]:
    """Every number of a summary.json but lists of failures and histograms, by the names that they have in tracking."""
    flat = {name: value for name, value in found.items() if isinstance(value, int | float)}
    for name, value in found.items():
        if name.endswith("_interval") and value is not None:
            flat |= {f"{name}_low": value[0], f"{name}_high": value[1]}
    for of, one in found["distributions"].items():
        flat |= {f"{of}_{which}": value for which, value in one.items() if isinstance(value, float)}
    return flat
