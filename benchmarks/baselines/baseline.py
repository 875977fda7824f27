"""What a baseline is: something that restores a measurement in one pass, without a diffusion."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from flashray.degradations.base import Operator


class Baseline(Protocol):
    """One pass from y to x̂, blind: all it takes from the operator is a view of y at the image's size."""

    @property
    def degradation(self) -> str:
        """The name of the degradation family that it was trained on."""
        ...

    def restore(self, y_BCHW: Tensor, operator: Operator) -> Tensor:
        """[B, 3, H, W] images in [-1, 1] of measurements in [-1, 1]; each image's alone, whoever shares the batch."""
        ...
