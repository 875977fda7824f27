"""The colour samples of an opened image as an array, as exactly as the file has them."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from flashray.errors import ImageError
from flashray.images import ifd
from flashray.images.formats import readable_formats


@dataclass(frozen=True)
class Samples:
    """Colour samples [H, W, C] and alpha [H, W] or None, of one type: uint8, uint16 or float32 in [0, 1]."""

    colours: NDArray[np.generic]
    alpha: NDArray[np.generic] | None
    kind: str  # grey (C = 1), rgb (3) or cmyk (4)
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_samples(image: ImageFile.ImageFile, data: bytes) -> Samples:
    """Decodes the image; `data` is its file, whose header was checked. ImageError for numbers of an unknown range."""
    main = ifd.read_first(data) if image.format == "TIFF" else None
    if image.format == "PPM" and (deep := _deep_netpbm(image, data)) is not None:
        return Samples(deep, None, "rgb" if deep.shape[-1] == 3 else "grey")
    if main is not None and main.number(284, 1) == 2 and max(main.numbers(258), default=1) > 8:
        # Pillow takes each byte of these for a sample.
        raise ImageError("this is a TIFF of 16 bits with separate planes; save it with interleaved channels")
    raw_mode = next(iter(_raw_modes(image)), "")
    if ";16" in raw_mode and not image.mode.startswith("I"):
        return _deep(image, data, raw_mode)
    if raw_mode == "F;32BF" and image.tile[0].codec_name == "libtiff":  # which has swapped the bytes already
        return _real(_decoded(data, {raw_mode: "F;32NF"}), main)
    transparency = image.info.get("transparency")
    image.load()
    if image.mode == "F":
        return _real(np.asarray(image), main)
    if image.mode.startswith("I;16"):
        return _deep_grey(image, transparency, main, raw_mode)
    if image.mode == "I":
        raise ImageError("the image holds signed or 32-bit numbers of an unknown range; save it with 8 or 16 bits")
    if image.format == "PNG" and image.mode == "L" and isinstance(transparency, int):
        # Pillow spreads 2 and 4 bits over 0 … 255, and leaves the transparent level as it is in the file
        image.info["transparency"] = transparency * {2: 85, 4: 17}.get(data[24], 1)
    return _eight_bits(image)


def _eight_bits(image: Image.Image) -> Samples:
    dropped: tuple[str, ...] = ()
    if image.mode == "LAB":
        image, dropped = _lab_to_srgb(image), ("Lab colours (they become RGB)",)
    if image.mode == "CMYK":
        return Samples(np.asarray(image), None, "cmyk")
    kind = "grey" if image.mode in ("1", "L", "LA", "La") else "rgb"
    if image.has_transparency_data or image.mode == "La":
        values = np.asarray(image.convert("LA" if kind == "grey" else "RGBA"))
        return Samples(values[..., :-1], values[..., -1], kind, dropped)
    values = np.asarray(image.convert("L" if kind == "grey" else "RGB"))
    return Samples(values if values.ndim == 3 else values[..., None], None, kind, dropped)


def _real(values: NDArray[Any], main: ifd.Directory | None) -> Samples:
    if not np.isfinite(values).all():
        raise ImageError("the image holds values that are not finite (NaN or infinite)")
    if values.min() < 0 or values.max() > 1:
        raise ImageError(
            f"the image holds floating-point numbers from {values.min():.4g} to {values.max():.4g}, an unknown range; "
            "scale them to 0 … 1, or save it with 8 or 16 bits"
        )
    if _white_is_zero(main):
        values = 1 - values
    return Samples(values[..., None], None, "grey")


def _white_is_zero(main: ifd.Directory | None) -> bool:
    """Of a TIFF, whose numbers Pillow leaves as they are."""
    return main is not None and main.number(262, 1) == 0


def _deep_grey(image: Image.Image, transparency: object, main: ifd.Directory | None, raw_mode: str) -> Samples:
    values = sixteen_bits(image, raw_mode == "I;12", _white_is_zero(main))
    warnings = ("the 12 bits of a sample are scaled to 16",) if raw_mode == "I;12" else ()
    alpha = np.where(values == transparency, 0, 65_535).astype(np.uint16) if isinstance(transparency, int) else None
    return Samples(values[..., None], alpha, "grey", warnings=warnings)


def sixteen_bits(image: Image.Image, twelve: bool, white_is_zero: bool) -> NDArray[np.uint16]:
    """[H, W] of a picture of mode I;16, in which Pillow leaves 12 bits and white at 0 as they are in the file."""
    values = np.asarray(image).astype(np.uint16)
    if twelve:
        values = np.rint(values.astype(np.float32) * (65_535 / 4095)).astype(np.uint16)
    return 65_535 - values if white_is_zero else values


def _deep(image: ImageFile.ImageFile, data: bytes, raw_mode: str) -> Samples:
    """16-bit colour, of which Pillow keeps only the high byte of a sample.

    So it decodes the file twice, the second time told that the bytes of a sample stand the other way round, and the two
    halves are put together: its decoders (libtiff's compressions and predictors, PNG's interlacing) serve here too.
    """
    if raw_mode == "LA;16B":  # its four bytes, as if each were a channel
        bytes_HWC = _decoded(data, {raw_mode: "RGBA"}).astype(np.uint16)
        grey, alpha = (bytes_HWC[..., i] << 8 | bytes_HWC[..., i + 1] for i in (0, 2))
        return Samples(grey[..., None], alpha, "grey")
    modes = {mode: mode.replace("RGBa", "RGBA") for mode in _raw_modes(image)}
    high = _decoded(data, modes).astype(np.uint16)
    low = _decoded(data, {mode: _other_order(new) for mode, new in modes.items()})
    values = high << 8 | low
    if image.mode == "CMYK":
        return Samples(values, None, "cmyk")
    if values.shape[-1] == 4:
        colours, alpha = values[..., :3], values[..., 3]
        if raw_mode.startswith("RGBa"):  # multiplied by alpha
            ratio = colours.astype(np.float32) * (65_535 / np.maximum(alpha, 1)[..., None].astype(np.float32))
            colours = np.rint(ratio.clip(0, 65_535)).astype(np.uint16)
        return Samples(colours, alpha, "rgb")
    if isinstance(transparency := image.info.get("transparency"), tuple):
        clear = (values == np.array(transparency, np.uint16)).all(axis=-1)
        return Samples(values, np.where(clear, 0, 65_535).astype(np.uint16), "rgb")
    return Samples(values, None, "rgb")


def _decoded(data: bytes, raw_modes: dict[str, str]) -> NDArray[Any]:
    """The pixels as Pillow unpacks them when its raw modes are exchanged."""
    with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
        image.tile = [
            tile._replace(args=raw_modes[args] if isinstance(args, str) else (raw_modes[args[0]], *args[1:]))
            for tile in image.tile
            if (args := tile.args)
        ]
        image.load()
        return np.asarray(image)


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    """The names by which Pillow's decoders know the order of bytes in a pixel."""
    return [args if isinstance(args, str) else str(args[0]) for tile in image.tile if (args := tile.args)]


def _other_order(raw_mode: str) -> str:
    name, _, order = raw_mode.partition(";16")
    little = order == "L" or (order == "N" and sys.byteorder == "little")
    return f"{name};16{'B' if little else 'L'}"


def _deep_netpbm(image: ImageFile.ImageFile, data: bytes) -> NDArray[np.uint16] | None:
    """The samples of a binary PPM or PGM of 16 bits, of which Pillow keeps 8 for colour; None for other files."""
    if data[:2] not in (b"P5", b"P6") or not image.tile:
        return None
    args = image.tile[0].args or (255,)
    most = args[-1] if isinstance(args, tuple) else 65_535 if ";16" in args else 255
    if not isinstance(most, int) or most <= 255:
        return None
    width, height = image.size
    count = width * height * (3 if data[:2] == b"P6" else 1)
    offset = image.tile[0].offset
    if offset + 2 * count > len(data):
        raise ImageError("the image is damaged or cut short: too few pixels")
    values = np.frombuffer(data, ">u2", count, offset).reshape(height, width, -1)
    if values.max() > most:
        raise ImageError("the image is damaged: samples above its maximum")
    return np.rint(values.astype(np.float64) * (65_535 / most)).astype(np.uint16)


def _lab_to_srgb(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    result = ImageCms.profileToProfile(image, lab, srgb, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
    assert result is not None  # it is None only when done in place
    return result
