"""Operators on the [0, 1] scale, on which their formulas are easier to read."""

from __future__ import annotations

from torch import Tensor

from flashray.degradations import Operator


def on_unit_scale(operator: Operator, x_BCHW: Tensor) -> Tensor:
    """A of images in [0, 1], measurements in [0, 1]."""
    return (operator.A(2 * x_BCHW - 1) + 1) / 2
