"""Degradations: one file an operator."""

from __future__ import annotations

from typing import Any

from flashray.degradations.base import Degradation, Operator, Parameters
from flashray.degradations.gaussian_blur import GaussianBlur
from flashray.degradations.nonlinear_blur import NonlinearBlur
from flashray.degradations.random_inpainting import RandomInpainting
from flashray.registry import build

DEGRADATIONS: dict[str, type[Degradation]] = {
    family.name: family for family in (GaussianBlur, RandomInpainting, NonlinearBlur)
}

__all__ = ["DEGRADATIONS", "Degradation", "Operator", "Parameters", "make_degradation"]


def make_degradation(name: str, settings: dict[str, Any] | None = None) -> Degradation:
    """The degradation family of this name; ConfigError names an unknown family or setting and lists the known ones."""
    return build("degradation", DEGRADATIONS, name, settings)
