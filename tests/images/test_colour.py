"""Colour spaces there and back, without the file's own samples that `encode_like` leans on."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from flashray.images.colour import colour_space
from flashray.images.icc import curves_and_matrix
from tests.support import profiles

RGB_PROFILES = {
    "display p3": profiles.display_p3(),
    "adobe": profiles.adobe_like(),
    "table": profiles.rgb(profiles.ADOBE, profiles.table_curve(2.1)),
    "linear": profiles.rgb(profiles.P3, profiles.gamma(1.0)),
    "identity curve": profiles.rgb(profiles.P3, b"curv\0\0\0\0\0\0\0\0"),
}


def colours(count: int = 20_000) -> np.ndarray:
    """Random sRGB colours, and all greys of 8 bits."""
    values = np.random.default_rng(0).uniform(0, 1, (1, count, 3))
    greys = np.linspace(0, 1, 256)[None, :, None].repeat(3, axis=-1)
    return np.concatenate([values, greys], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", RGB_PROFILES)
def test_wide_profiles_in_floating_point_there_and_back(name: str) -> None:
    space, warning = colour_space("rgb", 16, RGB_PROFILES[name])
    assert warning is None
    x = colours()
    samples = space.from_srgb(x)
    assert 0 <= samples.min() < samples.max() <= 1
    levels = np.rint(samples * 65_535) / np.float32(65_535)  # as they are written
    error = np.abs(space.to_srgb(levels) - x)
    # The steep start of sRGB's curve magnifies what a linear sample of 16 bits rounds away.
    assert error.max() < (2e-3 if name in ("linear", "identity curve") else 4e-4)
    assert error.mean() < 2e-5 if name in ("display p3", "adobe", "table") else error.mean() < 5e-5


@pytest.mark.parametrize("name", ["display p3", "adobe", "table"])
def test_wide_profiles_with_eight_bits_there_and_back(name: str) -> None:
    space, warning = colour_space("rgb", 8, RGB_PROFILES[name])
    assert warning is None
    x = np.rint(colours() * 255) / np.float32(255)
    error = np.abs(space.to_srgb(space.from_srgb(x)) - x) * 255
    assert error.mean() < 0.5
    plain = (x.max(axis=-1) - x.min(axis=-1) < 0.5) & (x.min(axis=-1) > 0.2)
    assert error[plain].max() <= 2.01
    # Of a colour that is strong in one channel and dark in another, a level of the profile is several of sRGB.
    assert error.max() <= 13


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_profiles_there_and_back(depth: int) -> None:
    space, _ = colour_space("grey", depth, profiles.grey(1.8))
    grey = np.linspace(0, 1, 256, dtype=np.float32)[None, :, None].repeat(3, axis=-1)
    there = space.from_srgb(grey)
    assert there.shape == (1, 256, 1)
    assert (np.diff(there[0, :, 0]) >= 0).all()
    back = space.to_srgb(there)
    assert back.shape == grey.shape
    assert np.abs(back - grey).max() < (3.1 / 255 if depth == 8 else 1e-3)


def test_black_and_white_stay_what_they_are() -> None:
    ends = np.array([[[0, 0, 0], [1, 1, 1]]], np.float32)
    for name, profile in RGB_PROFILES.items():
        for depth in (8, 16):
            space, _ = colour_space("rgb", depth, profile)
            tolerance = 1.01 / 255 if depth == 8 else 1e-3
            assert np.abs(space.from_srgb(ends) - ends).max() < tolerance, name
            assert np.abs(space.to_srgb(ends) - ends).max() < tolerance, name


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4])
def test_parametric_curves_against_their_formulas(kind: int) -> None:
    g, a, b, c, d, e, f = 2.4, 0.95, 0.05, 0.08, 0.04, 0.002, 0.001
    parameters = {0: (g,), 1: (g, a, b), 2: (g, a, b, e), 3: (g, a, b, c, d), 4: (g, a, b, c, d, e, f)}[kind]
    curve = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + profiles.fixed(*parameters)
    parsed = curves_and_matrix(profiles.rgb(profiles.P3, curve))
    assert parsed is not None
    x = np.linspace(0, 1, 65_536)
    power = (a * x + b) ** g
    expected = {
        0: x**g,
        1: power,
        2: power + e,
        3: np.where(x >= d, power, c * x),
        4: np.where(x >= d, power + e, c * x + f),
    }[kind]
    error = np.abs(parsed.curves[0] - np.maximum.accumulate(expected.clip(0, 1)))
    assert error[np.abs(x - d) > 1e-4].max() < 1e-4  # d is rounded in the file


@pytest.mark.parametrize("length", range(0, 560, 7))
def test_profiles_cut_short_are_refused_or_read_but_never_raise(length: int) -> None:
    for whole in (profiles.display_p3(), profiles.grey(), profiles.rgb(profiles.ADOBE, b"para\0\0\0\0\0\x09\0\0")):
        curves_and_matrix(whole[:length])
        for kind in ("rgb", "grey", "cmyk"):
            for depth in (8, 16):
                space, _ = colour_space(kind, depth, whole[:length])
                assert np.isfinite(space.from_srgb(colours(4))).all()
