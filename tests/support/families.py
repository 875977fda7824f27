"""Every family of degradations with settings to try it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from flashray.degradations import DEGRADATIONS, Degradation, make_degradation


@dataclass(frozen=True)
class Case:
    """A family with settings, and settings that leave nothing open but seeds."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Degradation:
        return make_degradation(self.name, self.settings)


CASES = [
    Case("gaussian_blur"),
    Case("random_inpainting"),
    Case("random_inpainting", {"paper": True, "missing": [0.1, 0.8]}),
    Case("random_inpainting", {"fill": False}),
    Case("box_inpainting", {"side": [4, 20]}),
    Case("motion_blur", {"length": [0.5, 12], "kernel_size": 15}),
    Case("motion_blur", {"length": [0.5, 12], "kernel_size": 15, "path": "random"}),
    Case("super_resolution", {"scale": 2}),
    Case("super_resolution", {"scale": 4}),
    Case("nonlinear_blur"),
    Case("jpeg"),
    Case("jpeg", {"subsampling": False}),
    Case("photo"),
    Case("photo", {"partial": 1.0}),
]
KNOWN = [case for case in CASES if case.name != "photo"]  # families whose operator a solver may use
LINEAR = [case for case in CASES if DEGRADATIONS[case.name].linear]
NONLINEAR = [case for case in KNOWN if not DEGRADATIONS[case.name].linear]
SMOOTH = [case for case in NONLINEAR if case.name != "jpeg"]  # whose gradient is a straight-through one, by design
SEVERE = [case for case in CASES if DEGRADATIONS[case.name].parameter_names]
ORDERED = [case for case in SEVERE if case in KNOWN]  # each image is damaged more at a higher severity


def case_id(case: Case) -> str:
    return f"{case.name}-{'-'.join(map(str, case.settings.values()))}"


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=case_id)
