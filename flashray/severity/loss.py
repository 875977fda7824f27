"""The severity encoder's training objective: a loss at every position."""

from __future__ import annotations

from torch import Tensor

FLOOR = 1e-4  # added to e²: σ̂ need not tell errors below .01 apart


def position_error(z_hat_BCHW: Tensor, z0_BCHW: Tensor) -> Tensor:
    """e²: [B, h, w] mean over channels of (ẑ - z₀)², the mean not removed."""
    return (z_hat_BCHW - z0_BCHW).square().mean(dim=1)


def map_loss(
    z_hat_BCHW: Tensor, z0_BCHW: Tensor, log_variance_Bhw: Tensor, lambda_sigma: float = 0.1
) -> dict[str, Tensor]:
    """e²/σ̂ + λσ ½ (e²/σ̂² + ln σ̂²), a mean over positions, as `loss`, and its terms `latent` (mean e²) and `sigma`.

    The first term trains ẑ and the second σ̂ alone; a regression on σ itself would be biased low. The first is divided
    by σ̂, which gets no gradient from it, so that slight and heavy damage count alike (Seitzer et al. 2022, β = 1/2).
    """
    error_Bhw = position_error(z_hat_BCHW, z0_BCHW)
    weighed = (error_Bhw * (-0.5 * log_variance_Bhw.detach()).exp()).mean()
    sigma = normal_loss(error_Bhw.detach() + FLOOR, log_variance_Bhw)
    return {"loss": weighed + lambda_sigma * sigma, "latent": error_Bhw.mean(), "sigma": sigma}


def normal_loss(error: Tensor, log_variance: Tensor) -> Tensor:
    """½ (e²/s² + ln s²), a mean over all elements: the negative logarithm of a normal density but for a constant."""
    return 0.5 * (error * (-log_variance).exp() + log_variance).mean()
