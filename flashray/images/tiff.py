"""Writing TIFF: deflate, interleaved samples of 8, 16 or 32 (floating-point) bits, with its metadata.

Pillow writes no 16-bit colour. `tifffile` would (it is pure Python and comes with scikit-image), but it needs a large
binary package to *read* the LZW compression and predictors that image editors write, where Pillow has libtiff. One
reader (Pillow, see `samples.py`) and this writer therefore stand without another dependency.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from flashray.images import ifd
from flashray.images.ifd import Entry

_STRIP_BYTES = 1 << 18

# Tags that say how the pixels are stored. They are written anew and never copied from another file.
STRUCTURE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291, 292}
    | {293, 297, 300, 301, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332, 333, 334, 336, 337, 338, 339}
    | {340, 341, 342, 343, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532}
)
XMP, ICC = 700, 34675
_RESOLUTION = (282, 283, 296)


def encode(
    samples_HWC: NDArray[np.generic],
    kind: str,
    alpha: bool,
    tags: ifd.Directory | None,
    icc: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
) -> bytes:
    """A TIFF file of one page. The same arguments give the same bytes.

    Args:
        samples_HWC: uint8, uint16 or float32; the last channel is alpha where `alpha` is set.
        kind: grey, rgb or cmyk.
        alpha: whether there is an alpha channel; colours are not multiplied by it.
        tags: metadata to copy (description, date, camera, GPS …); its byte order becomes the file's.
        icc, xmp, dpi: as in `SourceImage`; `dpi` yields to a resolution among the tags.
    """
    height, width, count = samples_HWC.shape
    order = tags.order if tags else "<"
    bits = samples_HWC.dtype.itemsize * 8
    real = samples_HWC.dtype.kind == "f"
    rows = max(1, min(height, _STRIP_BYTES // (width * count * bits // 8)))
    deflated = not (real and order == ">")  # Pillow would swap the bytes of those twice
    packed = (_packed(samples_HWC[top : top + rows], order, predict=not real) for top in range(0, height, rows))
    strips = [zlib.compress(strip, 6) if deflated else strip for strip in packed]
    entries = {
        256: ifd.longs(order, width),
        257: ifd.longs(order, height),
        258: ifd.shorts(order, *[bits] * count),
        259: ifd.shorts(order, 8 if deflated else 1),
        262: ifd.shorts(order, {"grey": 1, "rgb": 2, "cmyk": 5}[kind]),
        273: ifd.longs(order, *[0] * len(strips)),
        277: ifd.shorts(order, count),
        278: ifd.longs(order, rows),
        279: ifd.longs(order, *map(len, strips)),
        284: ifd.shorts(order, 1),
        317: ifd.shorts(order, 1 if real else 2),
        339: ifd.shorts(order, *[3 if real else 1] * count),
    }
    if alpha:
        entries[338] = ifd.shorts(order, 2)
    if icc:
        entries[ICC] = Entry(7, len(icc), icc)
    if xmp:
        entries[XMP] = Entry(1, len(xmp), xmp)
        if b"Orientation" in xmp:  # which readers believe where there is no tag
            entries[274] = ifd.shorts(order, 1)
    copied = {tag: entry for tag, entry in tags.entries.items() if tag not in STRUCTURE} if tags else {}
    if dpi and not any(tag in copied for tag in _RESOLUTION):
        for tag, value in zip(_RESOLUTION, dpi, strict=False):
            entries[tag] = Entry(5, 1, struct.pack(f"{order}II", round(value * 10_000), 10_000))
        entries[296] = ifd.shorts(order, 2)
    inside = tags.inside if tags else {}
    whole = ifd.Directory(order, copied | entries, inside)
    place = 8 + len(ifd.write(whole, 8))  # the length does not depend on the offsets
    offsets = []
    for strip in strips:
        offsets.append(place)
        place += len(strip)
    whole.entries[273] = ifd.longs(order, *offsets)
    return b"".join([ifd.header(order), ifd.write(whole, 8), *strips])


def _packed(rows: NDArray[np.generic], order: str, predict: bool) -> bytes:
    """The bytes of a strip; with prediction each sample less the one to its left, which deflates better."""
    if predict:
        rest = rows.copy()
        rest[:, 1:] = rows[:, 1:] - rows[:, :-1]  # type: ignore[operator]  # modulo 2^bits
        rows = rest
    return rows.astype(rows.dtype.newbyteorder(">" if order == ">" else "<")).tobytes()
