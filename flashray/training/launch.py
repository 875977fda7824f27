"""Run a training loop in this process or on Ray Train; both return a folder with the last training state."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from flashray.device import chosen_device
from flashray.errors import ConfigError
from flashray.training.loop import STATE_FILE, BuildTask, LoopConfig, Task, fit, line, load_averaged
from flashray.training.photo_windows import load_windows, shuffled_batches
from flashray.training.photos import list_places
from flashray.training.train_config import LaunchConfig

T = TypeVar("T", bound=Task)


def train(
    build: Callable[[], T], loop: LoopConfig, photos: str, side: int, name: str, config: LaunchConfig
) -> tuple[T, Path, dict[str, float]]:
    """The task that `build` makes, trained on photos, in evaluation mode; a folder with its last state; its figures.

    `side` is that of the square windows cut from the photos, of which a task takes its views.
    Checkpoints are stored under `<storage>/<name>-<fingerprint>`, so that another training does not continue this one.
    """
    device = device_here(config)
    name = f"{name}-{fingerprint(build, loop, photos)}"
    if config.launcher == "ray":
        from flashray.training.ray_train import launch_on_ray

        state = launch_on_ray(build, loop, photos, side, name, config)
    else:
        state = launch_here(build, loop, photos, side, name, config, device)
    task = build()
    figures = load_averaged(task, state)
    task.to(device).eval()
    return task, state, figures


def device_here(config: LaunchConfig) -> str:
    """This process's device; on Ray a driver may have no GPU, and its workers have. ConfigError as `chosen_device`."""
    return "cpu" if config.launcher == "ray" and not torch.cuda.is_available() else chosen_device(config.device)


def launch_here(
    build: BuildTask, loop: LoopConfig, photos: str, side: int, name: str, config: LaunchConfig, device: str
) -> Path:
    """Train in this process: checkpoints in `<storage>/<name>/last`, the one before a cool-down in `constant`."""
    if "://" in config.storage:
        raise ConfigError(
            f"launch.storage is {config.storage}: the local launcher keeps checkpoints in a folder; name one"
        )
    folder = Path(config.storage) / name
    last = folder / "last"
    if config.threads:
        torch.set_num_threads(config.threads)
    task = build()
    paths = list_places(photos)
    window = task.prepare(lambda: load_windows(paths, side), paths, Path(config.storage), device)
    if device != "cpu":
        window = window.to(device)
    print(f"{name}: {len(window)} samples of {'×'.join(map(str, window.shape[1:]))} on {device}", flush=True)
    torch.manual_seed(loop.seed)

    def report(metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        write_state(last, save)
        append_log(folder / "log.jsonl", metrics)
        print(line(name, metrics), flush=True)

    fit(
        task,
        loop,
        batches=lambda epoch: shuffled_batches(window, loop.batch_size, loop.seed, epoch),
        report=report,
        resume=last if (last / STATE_FILE).is_file() else None,
        device=device,
        batches_per_epoch=len(window) // loop.batch_size,
        keep=lambda save: write_state(folder / "constant", save),
        say=lambda text: print(f"{name}: {text}", flush=True),
    )
    return last


def fingerprint(build: BuildTask, loop: LoopConfig, photos: str) -> str:
    """Ten digits that are the same in every process; a function's repr would not be, as it has a memory address."""
    if isinstance(build, functools.partial):
        made_by: list[Any] = [build.func.__qualname__, build.args, sorted(build.keywords.items())]
    else:
        made_by = [getattr(build, "__qualname__", type(build).__qualname__)]
    return hashlib.sha256(repr([made_by, loop, photos]).encode()).hexdigest()[:10]


def write_state(folder: Path, save: Callable[[Path], None]) -> None:
    """Save a training state so that a killed process leaves either the old or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".state-") as fresh:
        save(Path(fresh))
        Path(fresh, STATE_FILE).replace(folder / STATE_FILE)


def append_log(path: Path, metrics: dict[str, Any]) -> None:
    """Add a line of figures to a JSON-lines log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S"), **metrics}) + "\n")
