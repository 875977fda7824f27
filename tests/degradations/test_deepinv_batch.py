"""Images of one batch whose physics differ by a parameter; the operators stand in for a physics of deepinv."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flashray.degradations.deepinv import LinearPhysicsOperator


@dataclass(frozen=True)
class Gain(LinearPhysicsOperator):
    """P(x) = g x, with a gain of each image's own."""

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        return self.parameters["gain"][:, None, None, None] * x_BCHW


@dataclass(frozen=True)
class Corner(LinearPhysicsOperator):
    """Half of the rows and columns, from each image's own first one on."""

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        height, width = self.size
        first_B = self.parameters["first"].long().tolist()
        parts = [x[:, n : n + height // 2, n : n + width // 2] for x, n in zip(x_BCHW, first_B, strict=True)]
        return torch.stack(parts)


@pytest.mark.parametrize(
    "operator",
    [
        Gain(None, {"gain": torch.tensor([1.0, 0.02])}, (24, 32)),
        Corner(None, {"first": torch.tensor([0, 9])}, (24, 32)),
    ],
)
def test_an_image_is_shown_as_it_would_be_alone(operator: LinearPhysicsOperator) -> None:
    x = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = operator.A(x)
    together = operator.pseudo_image(y)
    for n in range(2):
        alone = operator.select(torch.tensor([n])).pseudo_image(y[n : n + 1])[0]
        assert torch.equal(together[n], alone)
