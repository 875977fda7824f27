from __future__ import annotations

from pathlib import Path

import pytest

from flashray.degradations import DEGRADATIONS, PRESETS, make_degradation
from flashray.errors import ConfigError

EVERY = [(family, name) for family, presets in PRESETS.items() for name in presets]


@pytest.mark.parametrize(("family", "name"), EVERY)
def test_every_preset_is_sound(family: str, name: str, tmp_path: Path) -> None:
    preset = PRESETS[family][name]
    assert family in DEGRADATIONS
    (tmp_path / "weights").touch()
    extra = {"weights": str(tmp_path / "weights")} if family == "kernel_wizard" else {}
    made = make_degradation(family, {"preset": name, **extra})
    assert all(getattr(made, setting) == value for setting, value in preset.items())


def test_other_settings_go_before_the_presets() -> None:
    made = make_degradation("random_inpainting", {"preset": "paper_test", "missing": [0.1, 0.2]})
    assert made == make_degradation("random_inpainting", {"missing": [0.1, 0.2], "paper": True, "fill": False})


def test_unknown_presets_are_named_beside_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"preset 'foggy' is not known; known: varying, fixed"):
        make_degradation("gaussian_blur", {"preset": "foggy"})
    with pytest.raises(ConfigError, match="known: none"):
        make_degradation("jpeg", {"preset": "foggy"})
