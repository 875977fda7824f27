"""Where the σ̂ of a method comes from: the severity encoder, or something to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cheap_severities import Calibration, residual_std, wavelet_noise
from benchmarks.observations import Observed
from flashray.prior import LatentPrior


def _residual(one: Observed, prior: LatentPrior) -> Tensor:
    """std(y - A(D(ẑ))) of each image."""
    assert one.estimate.z_hat_BCHW is not None
    return residual_std(one.measured.y_BCHW, one.estimate.z_hat_BCHW, one.measured.operator, prior.decode)


# cheap severities, by the names of benchmarks.cheap_severities: [B], in units of their own
CHEAP: dict[str, Callable[[Observed, LatentPrior], Tensor]] = {
    "wavelet_noise": lambda one, prior: wavelet_noise(one.measured.y_BCHW),
    "residual_std": _residual,
}
SIGMAS = ("encoder", "true", *CHEAP)


def with_sigma(
    name: str, batches: Sequence[Observed], prior: LatentPrior, aside: Sequence[Observed] = ()
) -> list[Observed]:
    """The observations with σ̂ from one of SIGMAS; as they are where no severity encoder is asked.

    Args:
        aside: observations of photos that are not reported, whose true errors calibrate a cheap severity.
    """
    if name == "encoder" or batches[0].estimate.z_hat_BCHW is None:
        return list(batches)
    if name == "true":  # what a perfect severity encoder would say
        return [one.with_sigma(one.sigma_true_B) for one in batches]
    severity_N = torch.cat([CHEAP[name](one, prior) for one in aside])
    calibration = Calibration.fit(name, severity_N, torch.cat([one.sigma_true_B for one in aside]).to(severity_N))
    return [one.with_sigma(calibration(CHEAP[name](one, prior))) for one in batches]
