"""Degradations: one file an operator."""

from __future__ import annotations

from typing import Any

from flashray.build import build
from flashray.degradations.base import Degradation, Operator, Parameters
from flashray.degradations.box_inpainting import BoxInpainting
from flashray.degradations.deepinv import DeepinvPhysics
from flashray.degradations.gaussian_blur import GaussianBlur
from flashray.degradations.jpeg import Jpeg
from flashray.degradations.kernel_wizard import KernelWizard
from flashray.degradations.motion_blur import MotionBlur
from flashray.degradations.nonlinear_blur import NonlinearBlur
from flashray.degradations.photo import Photo
from flashray.degradations.presets import PRESETS, with_preset
from flashray.degradations.random_inpainting import RandomInpainting
from flashray.degradations.super_resolution import SuperResolution

DEGRADATIONS: dict[str, type[Degradation]] = {
    family.name: family
    for family in (
        *(GaussianBlur, MotionBlur, RandomInpainting, BoxInpainting, SuperResolution),  # linear
        *(NonlinearBlur, KernelWizard, Jpeg, Photo, DeepinvPhysics),
    )
}

__all__ = ["DEGRADATIONS", "PRESETS", "Degradation", "Operator", "Parameters", "make_degradation"]


def make_degradation(name: str, settings: dict[str, Any] | None = None) -> Degradation:
    """The degradation family of this name; ConfigError names an unknown family or setting and lists the known ones.

    `settings` are the family's fields; `preset` among them names settings of `PRESETS`.
    """
    return build("degradation", DEGRADATIONS, name, with_preset(name, settings))
