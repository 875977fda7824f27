"""What an update of a photo costs where few windows are active: the solver works on the whole photo all the same.

    python -m benchmarks.sparse_update [--side 1024]

Prints the process's seconds of an update with all windows active and with one. Give it one thread: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import time

import torch

import flashray
from flashray.active_image import activate, group
from flashray.engine import update
from flashray.restorer import Restorer


def seconds(restorer: Restorer, side: int, active: int | None) -> float:
    """Of one update, the lower of two; `active` windows take part, or all."""
    x = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    measured = restorer.measure([restorer.measurer.photo("a", x, severity=0.5)])
    windows = len(restorer.grid.windows((side, side)))
    start_K = (torch.arange(windows) < (windows if active is None else active)).long()
    z_hat = torch.zeros(1, *restorer.latent_shape((side, side)))
    found = []
    for _ in range(2):
        (job,) = restorer.begin(measured, z_hat, torch.ones(1), start_K[None])
        image = activate(job, (side, side), restorer.grid, restorer.device)
        groups = group(restorer.prior, restorer.degradation, restorer.grid, [image])
        began = time.process_time()
        update(restorer.prior, restorer.solver, restorer.schedule, groups, 8, restorer.recipe.solver.eta)
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=1024)
    side = parser.parse_args().side
    print(
        f"{side} x {side} pixels\n\n| recipe | windows | all active, s | one active, s |\n|---|---:|---:|---:|",
        flush=True,
    )
    for recipe in ("photo", "gaussian_blur_flash_proximal"):
        restorer = flashray.load(recipe, device="cpu", precision="float32", measurement="simulated")
        windows = len(restorer.grid.windows((side, side)))
        every, one = (seconds(restorer, side, active) for active in (None, 1))
        print(f"| {recipe} | {windows} | {every:.2f} | {one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
