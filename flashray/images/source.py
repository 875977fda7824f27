"""A photo as it came: its pixels for the networks, and everything needed to write the same kind of file again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import ifd, jpeg, metadata, png
from flashray.images.colour import ColourSpace, colour_space
from flashray.images.header import MAX_MEGAPIXELS, exif_of, opened, quarter_turn_of_tiff
from flashray.images.icc import Floats
from flashray.images.levels import from_uint16, to_uint16
from flashray.images.samples import Samples, read_samples
from flashray.images.tiff import ICC, XMP

ROWS_AT_ONCE = 256  # of colour conversions: bounds the memory beside the image itself
_PNG_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PNG_XMP = b"XML:com.adobe.xmp\0"
_PNG_OWN_NOTE = b"flashray\0"


@dataclass(frozen=True, eq=False)
class SourceImage:
    """A decoded photo with what its file holds besides the pixels. H and W are those of the upright photo.

    Attributes:
        pixels: float32 [3, H, W], sRGB in [-1, 1]; grey stands in all three channels; alpha is not applied.
        samples: [H, W, C], the file's own colour numbers (uint8, uint16, or float32 in [0, 1]).
        alpha: [H, W] of the same type, or None.
        format: Pillow's name: PNG, JPEG, WEBP, TIFF, BMP, PPM, AVIF, HEIF.
        kind: of the samples: grey (C = 1), rgb (3) or cmyk (4). Palettes are rgb, one bit a pixel is grey.
        depth: bits a sample: 8, 16, or 32 for floating-point numbers.
        neutral: all pixels have equal R, G and B, or one channel: the output is kept without a tint.
        lossless: whether the file's compression is.
        icc, exif, xmp: as in the file (EXIF without its prefix), or None. EXIF and XMP are those of the upright photo:
            orientation 1, small preview cut off. A broken profile is kept, though the pixels are read as sRGB.
        dpi: pixels per inch across and down, or None.
        private: what only this format knows, (name, bytes): PNG chunks, JPEG segments, TIFF tags.
        dropped: what the file holds and no output will; one phrase each.
        warnings: what was unclear; one sentence each.
    """

    pixels: Tensor
    samples: NDArray[np.generic]
    alpha: NDArray[np.generic] | None
    format: str
    kind: str
    depth: int
    neutral: bool
    lossless: bool
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    private: tuple[tuple[str, bytes], ...] = ()
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.samples.shape[1], self.samples.shape[0]


def open_image(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> SourceImage:
    """Reads an image file of any size down to 1 × 1, turned upright, its colours converted to sRGB.

    The header is checked before memory is taken for any pixel. Pixels need 12 bytes each, the file's own samples 1 to
    16 more. ImageError, with the reason, for what is no sound image, for animations, documents of several pages and
    camera raw files, floating-point numbers outside [0, 1], and images beyond `max_megapixels` (at most 178, where
    Pillow itself refuses).
    """
    with opened(data, max_megapixels) as (image, format):
        exif = exif_of(data, image, format)
        turn = 1 if format == "TIFF" else metadata.orientation(exif)  # Pillow turns TIFF itself
        info, has_more = dict(image.info), image.format == "MPO"
        private = _private(data, image, format)
        main = ifd.read_first(data) if format == "TIFF" else None
        icc = _embedded(image, main, "icc_profile", ICC)
        xmp = _png_xmp(data) if format == "PNG" else _embedded(image, main, "xmp", XMP)
        turned = turn >= 5 if main is None else quarter_turn_of_tiff(image)
        try:
            read = read_samples(image, data)
        except ImageError:
            raise
        except Exception as error:  # the decoders of damaged files raise whatever they stumble on
            raise ImageError(f"the image is damaged or cut short: {error}") from error
    if format == "PNG" and not png.pixels_match_their_checksums(data):
        raise ImageError("the image is damaged or cut short: its pixels do not match their checksum")
    samples = np.ascontiguousarray(_turned(read.colours, turn))
    depth = samples.dtype.itemsize * 8
    icc = icc if "Lab" not in "".join(read.dropped) else None
    space, warning = colour_space(read.kind, depth, icc)
    return SourceImage(
        pixels=to_pixels(samples, space),
        samples=samples,
        alpha=None if read.alpha is None else np.ascontiguousarray(_turned(read.alpha, turn)),
        format=format,
        kind=read.kind,
        depth=depth,
        neutral=_neutral(samples, read.kind),
        lossless=_lossless(data, format, main),
        icc=icc,
        exif=metadata.upright_exif(exif, turned) if exif else None,
        xmp=metadata.upright_xmp(xmp) if xmp and (turn > 1 or format == "TIFF") else xmp,
        dpi=_dpi(info, format, main, turned),
        private=private,
        dropped=(*read.dropped, *_dropped(data, format, has_more, main, read)),
        warnings=(*read.warnings, *([warning] if warning else []), *_gamma_warning(info, icc, private)),
    )


def unchanged(x_out_CHW: Tensor, source: SourceImage, rounded: bool = False) -> bool:
    """Whether writing [3, H, W] in [-1, 1] would change no pixel by half a grey level of the file's depth.

    Grey photos are compared by the mean of the channels, as they are written. Pixels of alpha 0 keep their colour
    whatever the restoration says, and do not count. NaN counts as a change. `rounded` to 16 bits, as by the job, an
    image is compared with the source's pixels rounded alike; those of 8-bit files lie far enough from half a level.
    """
    if x_out_CHW.shape != source.pixels.shape:
        return False
    visible = None if source.alpha is None else torch.from_numpy(source.alpha != 0)
    for top in range(0, source.pixels.shape[1], ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        x = x_out_CHW[:, rows].detach().float().cpu().clamp(-1, 1)
        if source.neutral:
            x = x.mean(dim=0, keepdim=True)
        given = source.pixels[:, rows]
        if rounded and source.depth > 8:
            given = from_uint16(to_uint16(given))
        close = ((x - given).abs() < half_level(source.depth)).all(dim=0)
        if not (close if visible is None else close | ~visible[rows]).all():
            return False
    return True


def half_level(depth: int) -> float:
    """Half a grey level on the scale of [-1, 1]; floating-point samples count as 16 bits."""
    return 1 / (2 ** min(depth, 16) - 1)


def scaled(samples: NDArray[np.generic]) -> Floats:
    """Samples to float32 in [0, 1]."""
    most = np.float32(1 if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max)  # type: ignore[type-var]
    return samples.astype(np.float32) / most


def to_pixels(samples: NDArray[np.generic], space: ColourSpace) -> Tensor:
    """[H, W, C] samples of a colour space as float32 [3, H, W], sRGB in [-1, 1]."""
    height, width = samples.shape[:2]
    x = torch.empty(3, height, width)
    for top in range(0, height, ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        x[:, rows] = torch.from_numpy(space.to_srgb(scaled(samples[rows])) * 2 - 1).permute(2, 0, 1)
    return x.clamp_(-1, 1)


def _turned(values: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """[H, W, ...] as EXIF's orientation says that it is meant to be seen."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _neutral(samples: NDArray[np.generic], kind: str) -> bool:
    if kind != "rgb":
        return kind == "grey"
    return bool((samples[..., :1] == samples).all())


def _dpi(info: dict[Any, Any], format: str, main: ifd.Directory | None, turned: bool) -> tuple[float, float] | None:
    """None where Pillow answers for a file that says nothing: it takes 72 for some JPEGs and 1 for some TIFFs."""
    if (format == "JPEG" and info.get("jfif_unit") not in (1, 2)) or (main is not None and 282 not in main.entries):
        return None
    try:
        across, down = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if not all(math.isfinite(value) and 0 < value < 100_000 for value in (across, down)):
        return None
    return (down, across) if turned else (across, down)


def _embedded(image: Image.Image, main: ifd.Directory | None, name: str, tag: int) -> bytes | None:
    """A block of metadata: the entry of a TIFF's first directory, in other formats what Pillow calls so."""
    if main is not None:
        return main.entries[tag].data if tag in main.entries else None
    block = image.info.get(name)
    return block if isinstance(block, bytes) and block else None


def _png_xmp(data: bytes) -> bytes | None:
    texts = (body for kind, body in png.chunks(data) if kind == b"iTXt" and body.startswith(_PNG_XMP))
    return png.international_text(next(texts, b"")) or None


def _private(data: bytes, image: Image.Image, format: str) -> tuple[tuple[str, bytes], ...]:
    """What is copied when the same format is written: captions (IPTC), comments, texts, colour hints."""
    if format == "PNG":
        return tuple(
            (kind.decode(), body)
            for kind, body in png.chunks(data)
            if kind in _PNG_COLOUR or (kind in _PNG_TEXT and not body.startswith((_PNG_XMP, _PNG_OWN_NOTE)))
        )
    if format == "TIFF":
        entries = ifd.read_first(data).entries
        wanted = (metadata.IPTC, metadata.PHOTOSHOP)
        return tuple((str(tag), entries[tag].data) for tag in wanted if tag in entries)
    if format == "JPEG":
        segments = [(str(name), body) for name, body in getattr(image, "applist", []) if name == "APP13"]
        comment = image.info.get("comment")
        return (*segments, *([("COM", comment)] if isinstance(comment, bytes) else []))
    return ()


def _lossless(data: bytes, format: str, main: ifd.Directory | None) -> bool:
    if format == "WEBP":
        return any(kind == b"VP8L" for kind in _riff_kinds(data))
    if main is not None:
        return main.number(259, 1) not in (6, 7, 34892, 50001, 50002)  # JPEG, lossy DNG, WebP, JPEG XL
    return format in ("PNG", "BMP", "PPM")


def _riff_kinds(data: bytes) -> list[bytes]:
    kinds, place = [], 12
    while place + 8 <= len(data):
        kinds.append(data[place : place + 4])
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return kinds


def _dropped(data: bytes, format: str, has_more: bool, main: ifd.Directory | None, read: Samples) -> tuple[str, ...]:
    dropped = jpeg.left_out(data, has_more) if format == "JPEG" else []
    if main is not None:
        if main.next != 0 or 330 in main.entries:  # smaller versions or masks: several pages are refused
            dropped.append("the smaller versions of the picture inside the TIFF")
        if metadata.PHOTOSHOP_LAYERS in main.entries:
            dropped.append("Photoshop's layers")
        if main.number(277, 1) > read.colours.shape[-1] + (read.alpha is not None) and main.number(262, 1) != 3:
            dropped.append("the further channels of the TIFF")
    if format == "AVIF" and (place := data.find(b"av1C")) > 0 and data[place + 6 : place + 7] > b"\x3f":
        high = data[place + 6] & 0x40
        dropped += ["10 or 12 bits a sample (they become 8)"] if high else []
    return tuple(dropped)


def _gamma_warning(info: dict[Any, Any], icc: bytes | None, private: tuple[tuple[str, bytes], ...]) -> list[str]:
    """A PNG may name its brightness curve without a profile; flashray reads profiles only."""
    gamma = info.get("gamma")
    if icc or not isinstance(gamma, float) or any(name in ("sRGB", "cICP") for name, _ in private):
        return []
    return [] if abs(gamma - 1 / 2.2) < 0.02 else [f"the PNG's gamma of {gamma:.3f} is kept but not applied"]
