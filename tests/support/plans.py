"""What plans are made of, without images."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from flashray.pipeline.plan import SEVERITY
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.schedule import NoiseSchedule
from tests.support.runs import config_of


def schedule(steps: int = 100) -> NoiseSchedule:
    return NoiseSchedule.from_scheduler_config({"num_train_timesteps": steps, "beta_schedule": "scaled_linear"})


def found(sigmas: list[float | None]) -> pa.Table:
    """Severity rows; None is an image that could not be read."""
    rows: list[dict[str, Any]] = []
    for i, sigma in enumerate(sigmas):
        status: dict[str, Any] = {"status": "error", "error": "torn"}
        if sigma is not None:
            status = {"status": "ok", "sigma_hat": sigma, "window_sigma": [sigma], "windows": 1, "pixels": 32 * 32}
        rows.append({"index": i, "key": f"key {i}", "uri": f"/a/key {i}", "width": 32, "height": 32} | status)
    return pa.Table.from_pylist(rows, schema=SEVERITY)


def work(**values: Any) -> WorkerSettings:
    config = config_of(**{"archive": "/a", "output": "/o", "unit_images": 2, "slots": 2} | values)
    return WorkerSettings.of(config, "cpu", 1, lpips=False)
