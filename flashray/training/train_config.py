"""The configuration that all training jobs share: what to train on, and where."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from flashray import storage
from flashray.errors import ConfigError
from flashray.storage.working_folder import refuse_relative


@dataclass(frozen=True)
class LaunchConfig:
    """Where training runs.

    Attributes:
        launcher: `ray` trains on Ray Train with sharded Ray Data; `local` in this process, without Ray.
        storage: folder or URI for checkpoints; running the same command again resumes from the last one.
        workers: Ray Train workers, one GPU each where there are GPUs.
        device: cpu, cuda, or auto (cuda where there is one).
        threads: CPU threads of a worker; 0 shares this machine's cores among the workers.
        cache: keep the decoded training windows in Ray's object store; turn it off where they do not fit.
        max_failures: how often Ray Train replaces a lost worker.
    """

    launcher: Literal["ray", "local"] = "ray"
    storage: str = "runs/training"
    workers: int = 1
    device: str = "auto"
    threads: int = 0
    cache: bool = True
    max_failures: int = 3

    def __post_init__(self) -> None:
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"launch.device is {self.device!r}; give cpu, cuda or auto")
        if self.launcher == "ray" and self.device.startswith("cuda:"):
            raise ConfigError(f"launch.device is {self.device!r}; give cuda, and CUDA_VISIBLE_DEVICES to choose on Ray")
        if self.workers < 1:
            raise ConfigError(f"launch.workers is {self.workers}; give at least 1")


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


def absolute(source: str) -> str:
    """An absolute path, because Ray's workers run in another folder; other names are not changed."""
    return os.path.abspath(source) if source and os.path.exists(source) else source


def with_absolute_paths(config: C, *names: str) -> C:
    """The configuration in a form that Ray's workers can use: photos, output and these fields are absolute paths.

    This is a function and not a method, because jsonargparse turns methods into subcommands.
    """
    uris: dict[str, Any] = {name: absolute(getattr(config, name)) for name in ("photos", "val_photos", *names)}
    return dataclasses.replace(config, output=str(Path(config.output).absolute()), **uris)
