"""Small ICC profiles, written by hand: wide RGB, grey, and CMYK by tables."""

from __future__ import annotations

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))  # R, G, B as XYZ
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB_TO_XYZ = np.array([[0.43607, 0.38506, 0.14308], [0.22250, 0.71688, 0.06062], [0.01393, 0.09710, 0.71417]])


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def profile(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 with the given tags."""
    table, body, place = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += struct.pack(">4sII", name, place + len(body), len(data))
        body += data
    size = place + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, kind, space, connection) + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def description(text: str) -> bytes:
    letters = text.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(letters)) + letters + bytes(8 + 3 + 67)


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def srgb_curve() -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def table_curve(exponent: float) -> bytes:
    values = np.rint(np.linspace(0, 1, 1024) ** exponent * 65_535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + values.tobytes()


def rgb(colorants: tuple[tuple[float, ...], ...], curve: bytes, name: str = "test RGB") -> bytes:
    tags = {b"desc": description(name), b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50)}
    for letter, colorant in zip(b"rgb", colorants, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*colorant)
        tags[bytes([letter]) + b"TRC"] = curve
    return profile(b"RGB ", b"XYZ ", b"mntr", tags)


def display_p3() -> bytes:
    return rgb(P3, srgb_curve(), "Like Display P3")


def adobe_like() -> bytes:
    return rgb(ADOBE, gamma(563 / 256), "Like Adobe RGB")


def grey(exponent: float = 1.8) -> bytes:
    tags = {b"desc": description("grey"), b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), b"kTRC": gamma(exponent)}
    return profile(b"GRAY", b"XYZ ", b"mntr", tags)


def cmyk() -> bytes:
    """Ideal inks on white: sRGB = (1 - CMY)(1 - K); on the way back K is half of what all three inks share."""
    inks = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    there = encoded_lab(srgb_to_lab((1 - inks[:, :3]) * (1 - inks[:, 3:])))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 17)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = np.stack([grid[:, 0] * 65_535 / 652.8, *(grid[:, i] * 65_535 / 256 - 128 for i in (1, 2))], axis=-1)
    x = lab_to_srgb(lab)
    black = (1 - x.max(axis=1, keepdims=True)) / 2
    back = np.concatenate([1 - x / (1 - black), black], axis=1).clip(0, 1)
    tags = {
        b"desc": description("ideal inks"),
        b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50),
        b"A2B0": lut(4, 3, 9, there),
        b"B2A0": lut(3, 4, 17, back),
    }
    return profile(b"CMYK", b"Lab ", b"prtr", tags)


def lut(inputs: int, outputs: int, points: int, table: np.ndarray) -> bytes:
    line = struct.pack(">2H", 0, 65_535)
    head = b"mft2\0\0\0\0" + bytes([inputs, outputs, points, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    values = np.rint(table * 65_535).astype(">u2").tobytes()
    return head + struct.pack(">2H", 2, 2) + line * inputs + values + line * outputs


def encoded_lab(lab: np.ndarray) -> np.ndarray:
    """Lab as version 2 writes it with 16 bits, on [0, 1]."""
    return (
        np.stack([lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], axis=-1).clip(0, 65_535)
        / 65_535
    )


def srgb_to_lab(x: np.ndarray) -> np.ndarray:
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    t = linear @ SRGB_TO_XYZ.T / D50
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=-1)


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    middle = (lab[:, 0] + 16) / 116
    f = np.stack([middle + lab[:, 1] / 500, middle, middle - lab[:, 2] / 200], axis=-1)
    t = np.where(f > 0.2069, f**3, (f - 16 / 116) / 7.787)
    linear = (t * D50 @ np.linalg.inv(SRGB_TO_XYZ).T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
