"""The methods of an experiment that restore in one pass, without a diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.observations import Observed
from benchmarks.swinir import SwinIR
from flashray.restored import Restored
from flashray.restorer import Restorer


def _autoencoder(one: Observed, restorer: Restorer) -> Tensor:
    assert one.estimate.z_hat_BCHW is not None
    return restorer.decode(one.estimate.z_hat_BCHW)


# measurement: y as it is; autoencoder: ẑ decoded ("AE"); ceiling: the autoencoder on the clean photo, which no method
# with this prior can pass by much
ONE_PASS: dict[str, Callable[[Observed, Restorer], Tensor]] = {
    "measurement": lambda one, restorer: one.measured.shown_BCHW,
    "autoencoder": _autoencoder,
    "ceiling": lambda one, restorer: restorer.decode(restorer.prior.encode(one.x_BCHW)),
}
# a baseline with weights of its own: `settings.weights`, by default those bundled for the task's family
SWINIR = "swinir"
BASELINES = (*ONE_PASS, SWINIR)


@torch.no_grad()
def restore_in_one_pass(
    name: str, batches: Sequence[Observed], restorer: Restorer, swinir: SwinIR | None = None
) -> list[Tensor]:
    """The restored images [3, H, W] in [-1, 1] on the CPU.

    Args:
        name: one of BASELINES.
        swinir: the model of the baseline swinir.
    """
    images: list[Tensor] = []
    for one in batches:
        if swinir is not None:
            made = swinir.restore(one.measured.y_BCHW, one.measured.operator)
        else:
            made = ONE_PASS[name](one, restorer)
        images += made.clamp(-1, 1).cpu()
    return images


def as_restored(images: list[Tensor], sigma_hat: list[float], seconds: float) -> Restored:
    """Images that something without a denoiser made in so many seconds."""
    n = len(images)
    each = [[image] for image in images]
    return Restored(list(images), sigma_hat, [0] * n, [False] * n, [seconds / n] * n, [None] * n, [None] * n, each)
