"""Files of many kinds made from real photos."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import tifffile
from PIL import Image
from skimage import data

WIDTH, HEIGHT = 60, 44  # not square, so that a wrong turn is noticed


def colour_photo(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A crop of a flower, [height, width, 3] uint8, with strong colours."""
    path = Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"
    return np.asarray(Image.open(path))[150 : 150 + height, 250 : 250 + width].copy()


def grey_photo(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A crop of coins, [height, width] uint8."""
    return data.coins()[60 : 60 + height, 20 : 20 + width].copy()


def deep(values: np.ndarray) -> np.ndarray:
    """8 bits to 16, with low bytes that differ from the high ones."""
    low = np.random.default_rng(3).integers(0, 256, values.shape)
    return (values.astype(np.uint16) << 8) | low.astype(np.uint16)


def soft_alpha(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """[height, width] uint8: clear at the left, opaque at the right."""
    ramp = np.linspace(-60, 300, width).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(ramp, (height, width)).copy()


def saved(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def saved_tiff(values: np.ndarray, **options: Any) -> bytes:
    """By tifffile, which shares no code with flashray's own reader and writer."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **options)
    return buffer.getvalue()


def png_by_hand(rows: np.ndarray, bits: int, colour: int, *more: tuple[bytes, bytes], size: Any = None) -> bytes:
    """An unfiltered PNG; rows is [height, width, channels] of uint8 or uint16. `size` lies about width and height."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, colour, 0, 0, 0)
    packed = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in rows)
    body = chunk(b"IHDR", header) + b"".join(chunk(*pair) for pair in more)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


def phone_exif(orientation: int = 1, thumbnail: bytes = b"") -> bytes:
    """Date, camera, GPS, private notes and a small preview, as a phone writes them; without prefix."""
    exif = Image.Exif()
    exif[0x010E] = "Grandmother's garden"
    exif[0x010F] = "Camera Works"
    exif[0x0112] = orientation
    exif[0x0132] = "1987:06:05 04:03:02"
    details = exif.get_ifd(0x8769)
    details[0x9003] = "1987:06:05 04:03:02"
    details[0x927C] = b"private notes with offsets" * 3
    details[0xA002], details[0xA003] = WIDTH, HEIGHT
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[3], place[4] = "N", (52.0, 31.0, 12.5), "E", (13.0, 24.0, 18.0)
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    if not thumbnail:
        return data
    order = "<" if data[:2] == b"II" else ">"  # a second directory at the end: the preview
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    end = start + 2 + 12 * struct.unpack_from(f"{order}H", data, start)[0]
    there = len(data) + len(data) % 2
    directory = struct.pack(f"{order}HHHIIHHIII", 2, 513, 4, 1, there + 30, 514, 4, 1, len(thumbnail), 0)
    return (
        data[:end]
        + struct.pack(f"{order}I", there)
        + data[end + 4 :].ljust(there - end - 4, b"\0")
        + (directory + thumbnail)
    )
