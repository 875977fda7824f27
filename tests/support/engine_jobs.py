"""Jobs for the engine with random measurements, parameters and start latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashray.active_image import Job
from flashray.seeding import image_seed


def jobs_of(starts: Sequence[int], dtype: torch.dtype = torch.float64, channels: int = 4) -> list[Job]:
    generator = torch.Generator().manual_seed(0)
    return [
        Job(
            key=f"{n}.png",
            seed=image_seed(0, f"{n}.png"),
            y=torch.rand(3, 32, 32, generator=generator, dtype=dtype) * 2 - 1,
            parameters={"blur_std": 0.3 + 2.7 * torch.rand((), generator=generator, dtype=dtype)},
            noise_std=0.05,
            z_start=torch.randn(channels, 8, 8, generator=generator, dtype=dtype),
            start_step=start,
        )
        for n, start in enumerate(starts)
    ]
