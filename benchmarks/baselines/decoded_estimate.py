"""The latent estimate alone, decoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations.base import Operator
from flashray.prior import LatentPrior
from flashray.severity.encoder import SeverityEncoder, load_severity_encoder


@dataclass(frozen=True)
class Autoencoder:
    """x̂ = D(ẑ), ẑ the severity encoder's: what Flash starts from, without a step ("AE" of Flash-Diffusion's tables)."""

    encoder: SeverityEncoder
    prior: LatentPrior

    @property
    def degradation(self) -> str:
        return self.encoder.degradation

    @torch.no_grad()
    def restore(self, y_BCHW: Tensor, operator: Operator) -> Tensor:
        z_hat, _ = self.encoder(operator.pseudo_image(y_BCHW))
        return self.prior.decode(z_hat).clamp(-1, 1)


def load_autoencoder(source: str, prior: LatentPrior) -> Autoencoder:
    """The baseline of a severity encoder (`bundled:NAME` or a folder) and the prior that it was trained for."""
    return Autoencoder(load_severity_encoder(source, prior.device), prior)
