"""What a method of an experiment can be besides a solver from a flash or full start."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines import Baseline, SwinIR, load_swinir
from benchmarks.experiment_file import StartSpec
from benchmarks.measured_photos import BATCH, Measurements, batches, decode_in_batches
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.severity import Start


@dataclass(frozen=True)
class FixedStart(Start):
    """Every image starts at the same step, whatever its σ̂ is."""

    step: int = 0

    def start_step(self, sigma_hat_B: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
        step_B = torch.full(sigma_hat_B.shape, min(self.step, len(schedule)), dtype=torch.long)
        return step_B, torch.zeros_like(step_B, dtype=torch.bool)


def start_of(spec: StartSpec, sigma_hat_N: Tensor | None, schedule: NoiseSchedule) -> Start:
    """The start that a method asks for, on images of these σ̂."""
    if spec.mode == "full":
        return Start(mode="full")
    flash = Start(mode="flash", formula=spec.formula, c=spec.c, sigma_scale=spec.sigma_scale)
    if spec.mode == "flash":
        return flash
    step = spec.step
    if step is None:  # at least as many evaluations as the flash start spends, on every image alike
        assert sigma_hat_N is not None
        step = math.ceil(flash.start_step(sigma_hat_N, schedule)[0].double().mean().item())
    return FixedStart(formula=spec.formula, c=spec.c, sigma_scale=spec.sigma_scale, step=step)


def _measurement(measured: Measurements, prior: LatentPrior) -> Tensor:
    return measured.shown_NCHW


def _autoencoder(measured: Measurements, prior: LatentPrior) -> Tensor:
    assert measured.z_hat_NCHW is not None
    return decode_in_batches(prior, measured.z_hat_NCHW)


def _ceiling(measured: Measurements, prior: LatentPrior) -> Tensor:
    return torch.cat([prior.decode(prior.encode(x)) for x in measured.x_NCHW.split(BATCH)])


def restore(measured: Measurements, model: Baseline) -> Tensor:
    """What a trained baseline makes of the measurements, [N, 3, H, W]."""
    size, found = (measured.x_NCHW.shape[2], measured.x_NCHW.shape[3]), []
    for rows in batches(len(measured.keys), measured.x_NCHW.device):
        operator = measured.degradation.bind({name: value[rows] for name, value in measured.parameters.items()}, size)
        found.append(model.restore(measured.y_NCHW[rows], operator))
    return torch.cat(found)


# measurement: y as it is; autoencoder: ẑ decoded ("AE"); ceiling: the autoencoder on the clean photo, which no method
# with this prior can pass by much
ONE_PASS: dict[str, Callable[[Measurements, LatentPrior], Tensor]] = {
    "measurement": _measurement,
    "autoencoder": _autoencoder,
    "ceiling": _ceiling,
}
# baselines with weights of their own: `settings.weights`, by default those bundled for the task's family
TRAINED: dict[str, Callable[[str, torch.device], SwinIR]] = {"swinir": load_swinir}
BASELINES = (*ONE_PASS, *TRAINED)
