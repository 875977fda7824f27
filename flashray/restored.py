"""What the restorer returns: the severity encoder's estimates, and restored images with their cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import sample_spread, to_pil
from flashray.severity import Severity


@dataclass(frozen=True)
class Estimate:
    """The severity encoder's estimates of B images of one size, which have K windows.

    Attributes:
        z_hat_BCHW: ẑ, latents of unit variance of the padded images, on their device; None where no encoder is used.
        sigma_BK: σ̂ of every window, float64 on the CPU; NaN where no encoder is used.
        severity: all that the encoder says, of the padded images; None where no encoder is used. Where fusion is
            learned its weights and residual are those that take effect, and the residual is without padding.
        spared_BK: bool, windows that the restored images take nothing from; None where there can be none.
    """

    z_hat_BCHW: Tensor | None
    sigma_BK: Tensor
    severity: Severity | None = None
    spared_BK: Tensor | None = None

    @property
    def start_sigma_BK(self) -> Tensor:
        """The σ̂ by which windows start: 0 in those that are spared."""
        return self.sigma_BK if self.spared_BK is None else self.sigma_BK.masked_fill(self.spared_BK, 0.0)

    @property
    def residual_B(self) -> Tensor:
        """bool: whether something is added to an image's pixels before fusion."""
        if self.severity is None:
            return torch.zeros(len(self.sigma_BK), dtype=torch.bool)
        return self.severity.residual_BCHW.flatten(1).any(dim=1).cpu()

    @property
    def sigma_hat_B(self) -> Tensor:
        """σ̂ of each image: the root mean square over its windows."""
        if self.sigma_BK.shape[1] == 1:
            return self.sigma_BK[:, 0]
        return self.sigma_BK.square().mean(dim=1).sqrt()


@dataclass(frozen=True)
class Restored:
    """Restored images and the cost of each, in the order in which they were given.

    Attributes:
        images: [3, H, W] in [-1, 1] on the CPU; None where there is an error.
        sigma_hat: σ̂ of each image; NaN without an encoder.
        nfe: denoiser evaluations of each image, a mean over its windows; of several samples each takes so many.
        fallback: whether a window took the full chain because its σ̂ was too large for the start.
        seconds: each image's share of the solver's time, for all of its samples.
        errors: why an image could not be restored, else None.
        sigma_maps: [h, w] σ̂ of each latent position, on the CPU; None without an encoder.
        samples: the N restorations of each image, the first of which is the one in `images`; None where there is an
            error.
    """

    images: list[Tensor | None]
    sigma_hat: list[float]
    nfe: list[float]
    fallback: list[bool]
    seconds: list[float]
    errors: list[str | None]
    sigma_maps: list[Tensor | None]
    samples: Sequence[Sequence[Tensor] | None]

    def __repr__(self) -> str:
        failed = sum(error is not None for error in self.errors)
        return f"Restored({len(self.images)} images, {failed} of them with an error; nfe {self.nfe})"

    @property
    def spread(self) -> list[Tensor | None]:
        """[H, W] the standard deviation over each image's samples, in grey levels of 8 bits; None without several."""
        return [None if some is None or len(some) < 2 else sample_spread(some) for some in self.samples]

    def pil(self, index: int = 0) -> Image.Image:
        """One restored image as a picture; ImageError where it could not be restored."""
        image = self.images[index]
        if image is None:
            raise ImageError(str(self.errors[index]))
        return to_pil(image)
