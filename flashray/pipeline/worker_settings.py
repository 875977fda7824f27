"""What every worker of a run needs to know. Light to import: load and write tasks start faster without the models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from flashray.pipeline.run_config import ReconstructConfig, TrackingConfig


@dataclass(frozen=True)
class Work:
    """What travels to the workers: settings and names, no filesystem and no secret.

    Attributes:
        size: side of the prior's images in pixels.
        lpips: whether LPIPS can be computed.
    """

    config: ReconstructConfig
    device: str
    threads: int
    size: int
    lpips: bool

    @classmethod
    def of(cls, config: ReconstructConfig, device: str, threads: int, size: int, lpips: bool) -> Work:
        return cls(dataclasses.replace(config, mlflow=TrackingConfig()), device, threads, size, lpips)
