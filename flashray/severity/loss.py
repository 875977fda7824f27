"""The severity encoder's training objective."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Target = Literal["std", "variance"]


def error_std(z_hat_BCHW: Tensor, z0_BCHW: Tensor) -> Tensor:
    """σ̄: [B] unbiased standard deviation of each image's latent error ẑ - z₀ (its mean removed)."""
    return (z_hat_BCHW - z0_BCHW).flatten(1).std(dim=1, unbiased=True)


def severity_loss(
    z_hat_BCHW: Tensor,
    z0_BCHW: Tensor,
    sigma_hat_B: Tensor,
    x_hat_BCHW: Tensor | None,
    x_BCHW: Tensor,
    lambda_sigma: float = 1.0,
    lambda_image: float = 1.0,
    target: Target = "std",
) -> dict[str, Tensor]:
    """‖ẑ - z₀‖²/d + λσ (σ̄ - σ̂)² + λ_image ‖D(ẑ) - x‖²/d_image, each term a mean over the batch.

    The objective of severity encoding (Flash-Diffusion) is written with standard deviations; its reference code
    penalises the difference of variances, which `target="variance"` does. (That code also sums its image term over the
    batch; here every term is averaged, so that no weight depends on the batch size.)

    Args:
        x_hat_BCHW: D(ẑ), or None when lambda_image is 0.

    Returns:
        `loss` and its terms `latent`, `sigma` and `image`, all scalars.
    """
    latent = (z_hat_BCHW - z0_BCHW).square().mean()
    sigma_bar_B = error_std(z_hat_BCHW, z0_BCHW)
    if target == "std":
        sigma = (sigma_bar_B - sigma_hat_B).square().mean()
    else:
        sigma = (sigma_bar_B.square() - sigma_hat_B.square()).square().mean()
    image = (x_hat_BCHW - x_BCHW).square().mean() if x_hat_BCHW is not None else latent.new_zeros(())
    loss = latent + lambda_sigma * sigma + lambda_image * image
    return {"loss": loss, "latent": latent, "sigma": sigma, "image": image}
