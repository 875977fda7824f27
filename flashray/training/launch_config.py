"""Where a training runs, and what both launchers say while it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from flashray.training.loop import Task

BuildTask = Callable[[], Task]  # must be picklable for Ray: a functools.partial over a module's function


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


def line(name: str, metrics: dict[str, Any]) -> str:
    """One line of progress."""
    figures = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items())
    return f"{name}: {' '.join(figures)}"
