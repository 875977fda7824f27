"""The configuration that all training jobs share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flashray import storage
from flashray.errors import ConfigError
from flashray.storage.working_folder import refuse_relative
from flashray.training.launch import absolute
from flashray.training.launch_config import LaunchConfig


@dataclass(frozen=True)
class TrainConfig:
    """What to train on, and where.

    Attributes:
        photos: clean photos for training: a folder, a prefix of an object store, or shards (WebDataset tar, Parquet).
        val_photos: a folder of clean photos for validation.
        output: folder of the finished model.
    """

    photos: str
    val_photos: str
    output: str
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        for name in ("val_photos", "output"):
            if not storage.is_local(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}: training needs a folder; a mounted one will do")
        uris = {name: getattr(self, name) for name in ("photos", "val_photos", "output")}
        refuse_relative(**uris, **{"launch.storage": self.launch.storage})


C = TypeVar("C", bound=TrainConfig)


def with_absolute_paths(config: C, *names: str) -> C:
    """The configuration in a form that Ray's workers can use: photos, output and these fields are absolute paths.

    This is a function and not a method, because jsonargparse turns methods into subcommands.
    """
    uris: dict[str, Any] = {name: absolute(getattr(config, name)) for name in ("photos", "val_photos", *names)}
    return dataclasses.replace(config, output=str(Path(config.output).absolute()), **uris)
