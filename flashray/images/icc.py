"""ICC profiles that are made of curves and a matrix, evaluated in floating point.

Pillow's colour management (ImageCms) works on 8 bits, which would leave bands in 16-bit photos. Most profiles of such
photos (Adobe RGB, ProPhoto, Display P3, grey gamma) need no more than this file; all others go through ImageCms.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_STEPS = 65_536  # of a tabulated curve: exact for 16-bit samples
# Linear sRGB to XYZ under D50, the white of ICC's connection space (Bradford adaptation).
_SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_LUT_TAGS = (b"A2B0", b"A2B1", b"A2B2", b"D2B0", b"D2B1")


@dataclass(frozen=True)
class CurvesAndMatrix:
    """A profile as curves from samples to linear light, and a matrix from there to linear sRGB (None for grey)."""

    curves: tuple[Floats, ...]  # [65,536] each, not falling, in [0, 1]
    to_linear_srgb: NDArray[np.float64] | None
    exact: bool = False  # colours that sRGB lacks are clipped

    def to_srgb(self, samples: Floats) -> Floats:
        """[H, W, C] in [0, 1] to sRGB [H, W, 3] in [0, 1]; colours that sRGB lacks are clipped."""
        index = np.rint(samples * (_STEPS - 1)).astype(np.int32)
        linear = np.stack([curve[index[..., i]] for i, curve in enumerate(self.curves)], axis=-1)
        if self.to_linear_srgb is not None:
            linear = linear @ self.to_linear_srgb.T.astype(np.float32)
        encoded = _srgb_encoded(linear.clip(0, 1))
        return encoded if encoded.shape[-1] == 3 else encoded.repeat(3, axis=-1)

    def from_srgb(self, x: Floats) -> Floats:
        """sRGB [H, W, 3] in [0, 1] to samples [H, W, C] in [0, 1]."""
        linear = _srgb_decoded(x)
        if self.to_linear_srgb is not None:
            linear = linear @ np.linalg.inv(self.to_linear_srgb).T.astype(np.float32)
        else:
            linear = linear.mean(axis=-1, keepdims=True)
        places = np.linspace(0, 1, _STEPS)
        channels = []
        for i, curve in enumerate(self.curves):
            samples = np.interp(linear[..., i], curve, places)
            samples[linear[..., i] <= curve[0]] = 0  # a curve that begins flat has many blacks: the darkest
            channels.append(samples.astype(np.float32))
        return np.stack(channels, axis=-1)


def curves_and_matrix(profile: bytes) -> CurvesAndMatrix | None:
    """The profile in this form; None when it is of another kind, or cannot be read."""
    try:
        return _parsed(profile)
    except (ValueError, struct.error, IndexError, np.linalg.LinAlgError):
        return None


def _parsed(profile: bytes) -> CurvesAndMatrix | None:
    if profile[36:40] != b"acsp" or profile[20:24] != b"XYZ ":
        return None
    tags = {}
    (count,) = struct.unpack_from(">I", profile, 128)
    for place in range(132, 132 + 12 * min(count, 200), 12):
        name, offset, size = struct.unpack_from(">4sII", profile, place)
        tags[name] = profile[offset : offset + size]
    if any(name in tags for name in _LUT_TAGS):
        return None
    if profile[16:20] == b"GRAY" and b"kTRC" in tags:
        return CurvesAndMatrix((_curve(tags[b"kTRC"]),), None)
    needed = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    if profile[16:20] != b"RGB " or any(name not in tags for name in needed):
        return None
    columns = [np.array(struct.unpack_from(">3i", tags[name], 8)) / 65_536 for name in needed[:3]]
    matrix = np.linalg.inv(_SRGB_TO_XYZ) @ np.stack(columns, axis=1)
    if abs(np.linalg.det(matrix)) < 1e-6:
        return None
    return CurvesAndMatrix(tuple(_curve(tags[name]) for name in needed[3:]), matrix)


def _curve(tag: bytes) -> Floats:
    """A tone curve as a table."""
    x = np.linspace(0, 1, _STEPS)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        values = np.frombuffer(tag, ">u2", count, 12).astype(np.float64)
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (values[0] / 256)
        else:
            y = np.interp(x, np.linspace(0, 1, count), values / 65_535)
    elif tag[:4] == b"para":
        y = _parametric(x, tag)
    else:
        raise ValueError("an unknown kind of curve")
    if not np.isfinite(y).all() or y[-1] <= y[0]:
        raise ValueError("not a curve")
    return np.maximum.accumulate(y.clip(0, 1)).astype(np.float32)


def _parametric(x: NDArray[np.float64], tag: bytes) -> NDArray[np.float64]:
    """The five functions of ICC's parametricCurveType."""
    (number,) = struct.unpack_from(">H", tag, 8)
    if number > 4:
        raise ValueError("an unknown kind of curve")
    values = np.array(struct.unpack_from(f">{(1, 3, 4, 5, 7)[number]}i", tag, 12)) / 65_536
    g, a, b, c, d, e, f = 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if number == 0:
        (g,) = values
    elif number == 1:
        g, a, b = values
        d = -b / a
    elif number == 2:
        g, a, b, e = values
        d, f = -b / a, e
    elif number == 3:
        g, a, b, c, d = values
    else:
        g, a, b, c, d, e, f = values
    return np.where(x >= d, (a * x + b).clip(0) ** g + e, c * x + f)


def _srgb_encoded(linear: Floats) -> Floats:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055).astype(
        np.float32
    )


def _srgb_decoded(x: Floats) -> Floats:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)
