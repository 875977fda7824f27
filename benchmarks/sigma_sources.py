"""Where the σ̂ of a start comes from: the severity encoder, or something to compare it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cheap_severities import Calibration, residual_std, wavelet_noise
from benchmarks.measured_photos import Measurements, batches
from flashray.prior import LatentPrior


def _residual(measured: Measurements, prior: LatentPrior) -> Tensor:
    """std(y - A(D(ẑ))) of each image, in the solver's own belief of A."""
    assert measured.z_hat_NCHW is not None
    size, found = (measured.x_NCHW.shape[2], measured.x_NCHW.shape[3]), []
    for rows in batches(len(measured.keys), measured.x_NCHW.device):
        operator = measured.degradation.bind({name: value[rows] for name, value in measured.parameters.items()}, size)
        found.append(residual_std(measured.y_NCHW[rows], measured.z_hat_NCHW[rows], operator, prior.decode))
    return torch.cat(found)


# cheap severities, by the names of benchmarks.cheap_severities: [N], in units of their own
CHEAP: dict[str, Callable[[Measurements, LatentPrior], Tensor]] = {
    "wavelet_noise": lambda measured, prior: wavelet_noise(measured.y_NCHW),
    "residual_std": _residual,
}
SIGMAS = ("encoder", "true", *CHEAP)


def with_sigma(name: str, measured: Measurements, prior: LatentPrior, aside: Measurements | None) -> Measurements:
    """The measurements with σ̂ from one of SIGMAS; as they are where no severity encoder looked.

    Args:
        aside: measurements of photos that are not reported, whose true errors calibrate a cheap severity.
    """
    if name == "encoder" or measured.sigma_hat_N is None:
        return measured
    if name == "true":  # what a perfect severity encoder would say
        return dataclasses.replace(measured, sigma_hat_N=measured.sigma_true_N)
    assert aside is not None
    assert aside.sigma_true_N is not None
    calibration = Calibration.fit(name, CHEAP[name](aside, prior), aside.sigma_true_N)
    return dataclasses.replace(measured, sigma_hat_N=calibration(CHEAP[name](measured, prior)))
