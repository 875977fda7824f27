"""Writing a restored photo as the same kind of file that it came as, or as another kind with a list of what is lost."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import ifd, metadata, png, tiff
from flashray.images.colour import ColourSpace, colour_space
from flashray.images.formats import FORMATS, WRITTEN, Holds, OutputFormat
from flashray.images.icc import Floats
from flashray.images.levels import saved, to_pil
from flashray.images.source import ROWS_AT_ONCE, SourceImage, half_level, scaled

QUALITY = 95
NO_PLACE_FOR_NOTE = "the note of provenance"
_SEGMENT = 65_533  # bytes that a JPEG segment holds
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_FORGOTTEN_AT = 1.0  # a change of this much on [-1, 1], half the range; see `_back`


@dataclass(frozen=True)
class Encoded:
    """A file's bytes."""

    data: bytes  # the same image and arguments give the same bytes
    lost: tuple[str, ...]  # what the photo had and this file does not hold, one phrase each


@dataclass(frozen=True)
class _Contents:
    """What goes into the file: samples [H, W, C] (alpha last where there is one) and metadata."""

    samples: NDArray[np.generic]
    kind: str
    alpha: bool
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None
    dpi: tuple[float, float] | None
    private: tuple[tuple[str, bytes], ...]


def encode_like(
    x_CHW: Tensor,
    source: SourceImage,
    format: OutputFormat = "same",
    quality: int | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Encoded:
    """The image x as a file like the source: its format, channels, depth, colour profile, alpha and metadata.

    Colours go back through the source's profile. Samples that did not change by half a level, and those of alpha 0, are
    the source's own. ImageError when x is not finite or too large for the format; ValueError for another size, format
    or quality.

    Args:
        x_CHW: [3, H, W] sRGB in [-1, 1], clamped, of the source's upright size.
        quality: 1 to 100, of JPEG, AVIF, HEIF and WebP. None is 95, and for WebP lossless when the source was.
        provenance: a note for the metadata (recipe, σ̂, NFE, run id), as JSON: in PNG an international text chunk
            `flashray`, in the other formats the XMP property `flashray:provenance`. Fields that are there already stay.
    """
    if x_CHW.shape != source.pixels.shape:
        raise ValueError(f"the image has shape {tuple(x_CHW.shape)}, its source {tuple(source.pixels.shape)}")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality: 1 to 100, not {quality}")
    check_side(source.size, source.format, format)
    name = _written_as(source.format, format)
    holds = FORMATS[name]
    x = x_CHW.detach().float().cpu()
    if not all(torch.isfinite(x[:, top : top + ROWS_AT_ONCE]).all() for top in range(0, x.shape[1], ROWS_AT_ONCE)):
        raise ImageError("the image holds values that are not finite")
    kept = _kept(source, name)
    contents, more = _with_provenance(_contents(x, source, kept, holds), name, holds, provenance)
    data, too_long = _write(contents, name, quality, source.lossless)
    return Encoded(data, tuple(dict.fromkeys([*source.dropped, *kept.lost, *more, *too_long])))


def check_side(size: tuple[int, int], source: str, format: OutputFormat) -> None:
    """ImageError for sides (in pixels) that the file of an image cannot have; `source` is its own format."""
    name = _written_as(source, format)
    if max(size) > FORMATS[name].max_side:
        raise ImageError(f"{name} holds at most {FORMATS[name].max_side:,} pixels a side; the image has {max(size):,}")


def losses(source: SourceImage, format: OutputFormat) -> tuple[str, ...]:
    """What a file of this format will not hold of the photo, one phrase each, whatever is made of its pixels.

    Metadata that are too long for a JPEG are found when it is written.
    """
    return (*source.dropped, *_kept(source, _written_as(source.format, format)).lost)


def _written_as(source: str, format: OutputFormat) -> str:
    """Pillow's name of the format to write."""
    if format != "same" and format not in WRITTEN:
        raise ValueError(f"format: same, {', '.join(WRITTEN)}; not {format!r}")
    return source if format == "same" else WRITTEN[format][0]


@dataclass(frozen=True)
class _Kept:
    """What of a photo goes into a file of a format: the kind of samples and their bits; and what does not."""

    depth: int
    kind: str
    icc: bytes | None
    private: tuple[tuple[str, bytes], ...]
    lost: list[str]


def _kept(source: SourceImage, name: str) -> _Kept:
    holds, lost = FORMATS[name], []
    depth = max((bits for bits in holds.depths if bits <= source.depth), default=8)
    if depth < source.depth:
        numbers = f"32-bit floating-point numbers become {depth} bits"
        lost.append(numbers if source.depth == 32 else f"{source.depth} bits become {depth}")
    kind, icc = source.kind, source.icc
    if kind == "cmyk" and "cmyk" not in holds.kinds:
        kind = "rgb"
        lost.append("CMYK becomes RGB")
        if icc:
            icc = None  # it describes inks; the pixels are sRGB now
            lost.append("the colour profile of the CMYK file")
    elif kind == "grey" and "grey" not in holds.kinds:
        kind = "rgb"  # three equal channels
        if icc:
            icc = None
            lost.append("the colour profile of the grey file")
    if source.alpha is not None and not holds.alpha:
        lost.append("alpha (the image is laid on white)")
    for what, value, held in (
        ("the colour profile", icc, holds.icc),
        ("EXIF", source.exif, holds.exif),
        ("XMP", source.xmp, holds.xmp),
    ):
        if value is not None and not held:
            lost.append(what)
    private = source.private
    if name != source.format and private:
        kinds = sorted({{"COM": "comment", "APP13": "IPTC"}.get(name, name) for name, _ in private})
        lost.append(f"what only {source.format} files hold ({', '.join(kinds)})")
        private = ()
    return _Kept(depth, kind, icc if holds.icc else None, private, lost)


def _contents(x: Tensor, source: SourceImage, kept: _Kept, holds: Holds) -> _Contents:
    if source.alpha is not None and kept.kind == "cmyk":
        raise AssertionError("CMYK with alpha is not read")
    samples = _rendered(x, source, kept.kind, kept.depth)
    if source.alpha is not None:
        alpha = _converted(source.alpha, kept.depth)
        samples = np.concatenate([samples, alpha[..., None]], axis=-1) if holds.alpha else _on_white(samples, alpha)
    return _Contents(
        samples,
        kept.kind,
        source.alpha is not None and holds.alpha,
        kept.icc,
        source.exif if holds.exif else None,
        source.xmp if holds.xmp else None,
        source.dpi,
        kept.private,
    )


def _rendered(x: Tensor, source: SourceImage, kind: str, depth: int) -> NDArray[np.generic]:
    """The colour samples [H, W, C] to write, of the given kind and depth."""
    height, width = source.samples.shape[:2]
    own = kind == source.kind
    channels = source.samples.shape[-1] if own else 3
    space, _ = colour_space(source.kind, source.depth, source.icc)
    out = np.empty((height, width, channels), {8: np.uint8, 16: np.uint16, 32: np.float32}[depth])
    for top in range(0, height, ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        after, before = x[:, rows].clamp(-1, 1), source.pixels[:, rows]
        if source.neutral:
            after = after.mean(dim=0, keepdim=True).expand(3, -1, -1)
        change = (after - before).abs().amax(dim=0).numpy()
        keep = change < half_level(source.depth)
        if source.alpha is not None:
            keep |= source.alpha[rows] == 0
        if not own:
            values = _unit(torch.where(torch.from_numpy(keep), before, after))
        else:
            samples = scaled(source.samples[rows])
            values = _back(space, _unit(after), _unit(before), samples, change)
            if source.neutral:  # profiles round channels differently
                values = np.repeat(values.mean(axis=-1, keepdims=True), channels, axis=-1)
            values = np.where(keep[..., None], samples, values)
        out[rows] = _converted(values, depth)
    return out


def _back(space: ColourSpace, after: Floats, before: Floats, own: Floats, change: NDArray[np.float32]) -> Floats:
    """The samples of sRGB colours, where the photo had the sRGB colours `before` and the samples `own`.

    sRGB lacks some colours of larger profiles, and the separation of inks has many answers. So the difference between
    the file's own samples and what its profile makes of their sRGB colours is added, with a weight from 1 where nothing
    changed to 0 where the pixel became another colour. On a photo in Display P3 of which sRGB clips two thirds, with
    noise of 15 levels, a perfect sRGB restoration then has an error of 5.1 levels (root mean square) instead of 10.8.
    """
    values = space.from_srgb(after)
    if space.exact:
        return values
    weight = (1 - change / _FORGOTTEN_AT).clip(0, 1)[..., None]
    return values + weight * (own - space.from_srgb(before))


def _unit(x_CHW: Tensor) -> Floats:
    """[3, H, W] in [-1, 1] to [H, W, 3] in [0, 1]."""
    return ((x_CHW.permute(1, 2, 0) + 1) / 2).numpy()


def _converted(values: NDArray[np.generic], depth: int) -> NDArray[np.generic]:
    """Samples, or float32 in [0, 1], at another depth."""
    if values.dtype.itemsize * 8 == depth and (values.dtype.kind == "u" or depth == 32):
        return values
    units = scaled(values).clip(0, 1)
    if depth == 32:
        return units
    return np.rint(units * (2**depth - 1)).astype(np.uint8 if depth == 8 else np.uint16)


def _on_white(samples: NDArray[np.generic], alpha: NDArray[np.generic]) -> NDArray[np.generic]:
    share = scaled(alpha)[..., None]
    return _converted(scaled(samples) * share + (1 - share), samples.dtype.itemsize * 8)


def _with_provenance(
    contents: _Contents, name: str, holds: Holds, provenance: Mapping[str, str] | None
) -> tuple[_Contents, list[str]]:
    if provenance is None:
        return contents, []
    if name == "PNG":
        kind, body = png.text_chunk("flashray", metadata.provenance_text(provenance))
        return replace(contents, private=(*contents.private, (kind.decode(), body))), []
    xmp = metadata.xmp_with_provenance(contents.xmp, provenance) if holds.xmp else None
    room = _SEGMENT - len(_XMP_PREFIX) if name == "JPEG" else math.inf
    if xmp is None or len(xmp) > room:  # without the note the photo's own XMP may have room
        return contents, [NO_PLACE_FOR_NOTE]
    return replace(contents, xmp=xmp), []


def _write(contents: _Contents, name: str, quality: int | None, lossless: bool) -> tuple[bytes, list[str]]:
    """The file, and which metadata were too long for it."""
    if name == "PNG":
        return _png(contents), []
    if name == "TIFF":
        return _tiff(contents), []
    if name == "PPM":
        return _netpbm(contents.samples), []
    lost: list[str] = []
    options: dict[str, Any] = {}
    if name == "JPEG":
        contents, lost = _within_segments(contents)
        options = _jpeg_options(contents, quality)
    elif name == "BMP":
        options = {"dpi": contents.dpi} if contents.dpi else {}
    else:
        options = {"quality": QUALITY if quality is None else quality}
        if name == "WEBP":
            options |= {"lossless": lossless and quality is None, "exact": True, "method": 4}
            options |= {"quality": 80} if options["lossless"] else {}  # the effort, not the quality
        elif name == "AVIF":
            options |= {"subsampling": "4:4:4", "max_threads": 1}  # more threads may give other bytes
        elif name not in Image.SAVE:
            raise ImageError(f"Pillow cannot write {name} here; choose another format")
        options |= _given(icc_profile=contents.icc, exif=contents.exif, xmp=contents.xmp)
    try:
        return saved(_picture(contents), name, **options), lost
    except Exception as error:  # encoders raise whatever they stumble on
        raise ImageError(f"the image cannot be written as {name}: {error}") from error


def _png(contents: _Contents) -> bytes:
    if contents.samples.dtype == np.uint16:
        data = png.encode_16_bit(contents.samples)  # type: ignore[arg-type]
    else:
        data = saved(_picture(contents), "PNG", compress_level=6)
    chunks: list[png.Chunk] = []
    if contents.icc:
        chunks.append(png.icc_chunk(contents.icc))
    if contents.dpi:
        chunks.append(png.dpi_chunk(contents.dpi))
    if contents.exif:
        chunks.append((b"eXIf", contents.exif))
    if contents.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + contents.xmp))
    return png.with_chunks(data, [*chunks, *((kind.encode(), body) for kind, body in contents.private)])


def _tiff(contents: _Contents) -> bytes:
    tags = ifd.read_first(contents.exif) if contents.exif else ifd.Directory("<", {})
    for tag, body in contents.private:
        tags.entries[int(tag)] = ifd.Entry(7, len(body), body)
    return tiff.encode(contents.samples, contents.kind, contents.alpha, tags, contents.icc, contents.xmp, contents.dpi)


def _netpbm(samples: NDArray[np.generic]) -> bytes:
    height, width, channels = samples.shape
    most = 65_535 if samples.dtype == np.uint16 else 255
    header = f"{'P5' if channels == 1 else 'P6'}\n{width} {height}\n{most}\n".encode()
    return header + samples.astype(samples.dtype.newbyteorder(">")).tobytes()


def _jpeg_options(contents: _Contents, quality: int | None) -> dict[str, Any]:
    extra = b"".join(
        b"\xff\xed" + struct.pack(">H", len(body) + 2) + body for name, body in contents.private if name == "APP13"
    )
    comments = [body for name, body in contents.private if name == "COM"]
    return _given(
        quality=QUALITY if quality is None else quality,
        subsampling="4:4:4",
        icc_profile=contents.icc,
        exif=metadata.EXIF_PREFIX + contents.exif if contents.exif else None,
        xmp=contents.xmp,
        dpi=tuple(min(round(value), 65_535) for value in contents.dpi) if contents.dpi else None,
        extra=extra or None,
        comment=comments[0] if comments else None,
    )


def _within_segments(contents: _Contents) -> tuple[_Contents, list[str]]:
    """JPEG holds EXIF and XMP in one segment each; what is longer is left out."""
    lost = []
    if contents.exif and len(metadata.EXIF_PREFIX) + len(contents.exif) > _SEGMENT:
        contents = replace(contents, exif=None)
        lost.append("EXIF (longer than a JPEG segment)")
    if contents.xmp and len(_XMP_PREFIX) + len(contents.xmp) > _SEGMENT:
        contents = replace(contents, xmp=None)
        lost.append("XMP (longer than a JPEG segment)")
    return contents, lost


def _picture(contents: _Contents) -> Image.Image:
    """Pillow's picture of 8-bit samples."""
    samples = np.ascontiguousarray(contents.samples)
    height, width, channels = samples.shape
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if contents.kind == "cmyk" else "RGBA"}[channels]
    return Image.frombytes(mode, (width, height), samples.reshape(-1).data)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def encode_png(x_CHW: Tensor) -> bytes:
    """[3, H, W] in [-1, 1], clamped, as a PNG of 8-bit RGB without metadata; equal images give equal bytes.

    ImageError when it holds NaN or infinities, which no PNG can.
    """
    if not torch.isfinite(x_CHW).all():
        raise ImageError("the image holds values that are not finite")
    return saved(to_pil(x_CHW), "PNG", compress_level=6)
