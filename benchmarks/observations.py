"""Clean photos as the methods of an experiment get them: degraded, with the severity encoder's estimates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.experiment_photos import Photos
from flashray.degradations import Degradation
from flashray.measurement import Measurement
from flashray.restored import Estimate
from flashray.restorer import BATCH, Restorer
from flashray.severity import Severity, Start


@dataclass(frozen=True)
class Observed:
    """A batch of simulated measurements, the estimate that a start goes by, and σ̄ (NaN without an encoder)."""

    measured: Measurement
    estimate: Estimate
    sigma_true_B: Tensor

    @property
    def x_BCHW(self) -> Tensor:
        """The clean photos."""
        assert self.measured.x_BCHW is not None, "measurements of experiments are simulated"
        return self.measured.x_BCHW

    def with_sigma(self, sigma_hat_B: Tensor) -> Observed:
        """The same with another σ̂."""
        sigma_BK = sigma_hat_B.double().cpu()[:, None]
        return dataclasses.replace(self, estimate=dataclasses.replace(self.estimate, sigma_BK=sigma_BK))


@torch.no_grad()
def observe(restorer: Restorer, photos: Photos, severity: float | None = None) -> list[Observed]:
    """The photos in batches.

    Args:
        severity: every photo at this severity of the family's range, 0 … 1, instead of one drawn from its key.
    """
    given = [
        restorer.measurer.photo(key, x, severity=severity) for key, x in zip(photos.keys, photos.x_NCHW, strict=True)
    ]
    found = []
    for first in range(0, len(given), BATCH):
        measured = restorer.measure(given[first : first + BATCH])
        estimate = restorer.estimate(measured)
        true_B = torch.full_like(estimate.sigma_hat_B, math.nan)
        if estimate.z_hat_BCHW is not None and measured.x_BCHW is not None:
            true_B = restorer.true_sigma(estimate.z_hat_BCHW, measured.x_BCHW).double().cpu()
        found.append(Observed(measured, estimate, true_B))
    return found


def first_of(batches: Sequence[Observed], count: int) -> list[Observed]:
    """The observations of the first so many photos."""
    found: list[Observed] = []
    for one in batches:
        rows = torch.arange(min(count, len(one.measured)))
        if not len(rows):
            break
        count -= len(rows)
        z_hat, said, spared = one.estimate.z_hat_BCHW, one.estimate.severity, one.estimate.spared_BK
        estimate = Estimate(
            None if z_hat is None else z_hat[rows],
            one.estimate.sigma_BK[rows],
            None if said is None else Severity(*(value[rows] for value in said)),
            None if spared is None else spared[rows],
        )
        found.append(Observed(one.measured.select(rows), estimate, one.sigma_true_B[rows]))
    return found


def believing(batches: Sequence[Observed], degradation: Degradation, times: Mapping[str, float]) -> list[Observed]:
    """The same measurements for a solver that takes these parameters of the operator to be so many times the truth.

    Raises:
        ConfigError: if the operator is not defined there.
    """
    return [dataclasses.replace(one, measured=_rebound(one, degradation, times)) for one in batches]


def mean_flash_step(start: Start, batches: Sequence[Observed], restorer: Restorer) -> int:
    """The mean step of a flash start with these settings, rounded up: as many evaluations, spent on all alike."""
    sigma_hat_N = torch.cat([one.estimate.sigma_hat_B for one in batches])
    flash = dataclasses.replace(start, mode="flash", step=None)
    return math.ceil(flash.start_step(sigma_hat_N, restorer.schedule)[0].double().mean().item())


def _rebound(one: Observed, degradation: Degradation, times: Mapping[str, float]) -> Measurement:
    measured = one.measured
    wrong = {name: value * times.get(name, 1.0) for name, value in measured.parameters.items()}
    degradation.check_parameters(wrong)
    operator = degradation.bind(wrong, (one.x_BCHW.shape[2], one.x_BCHW.shape[3]))
    return dataclasses.replace(measured, parameters=wrong, operator=operator)
