"""PNG files as chunks: checks, metadata, and the writer of 16-bit colour, which Pillow lacks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of samples a pixel
_MOST_TEXT = 1 << 24  # bytes that a compressed text may unpack to
_ROWS_AT_ONCE = 64  # filtered together: bounds the memory

Chunk = tuple[bytes, bytes]


def chunks(data: bytes) -> Iterator[Chunk]:
    """Kind and body of every chunk that is whole, up to the first that is not."""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4])
        if place + 12 + length > len(data):
            return
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def pixels_match_their_checksums(data: bytes) -> bool:
    """Of the pixels alone; Pillow looks at all the others, and takes damaged pixels as they come."""
    place = len(SIGNATURE)
    while place < len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if kind == b"IDAT" and zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return False
        place = end + 4
    return True


def with_chunks(data: bytes, more: Sequence[Chunk]) -> bytes:
    """The file with further chunks behind its header, where colour information has to stand."""
    end_of_header = len(SIGNATURE) + 12 + 13
    view = memoryview(data)
    return b"".join([view[:end_of_header], *(_chunk(kind, body) for kind, body in more), view[end_of_header:]])


def text_chunk(keyword: str, text: str) -> Chunk:
    """International text (UTF-8, not compressed)."""
    return b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()


def international_text(body: bytes) -> bytes:
    """The text of an iTXt chunk, UTF-8; empty when it is malformed or unpacks to more than 16 MiB."""
    _, _, rest = body.partition(b"\0")
    compressed, text = rest[:1], rest[2:].split(b"\0", 2)[-1]
    if compressed != b"\1":
        return text
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(text, _MOST_TEXT)
    except zlib.error:
        return b""
    return b"" if unpacker.unconsumed_tail else text


def icc_chunk(profile: bytes) -> Chunk:
    return b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile, 6)


def dpi_chunk(dpi: tuple[float, float]) -> Chunk:
    across, down = (round(value / 0.0254) for value in dpi)
    return b"pHYs", struct.pack(">IIB", across, down, 1)


def encode_16_bit(samples_HWC: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits a sample: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) samples a pixel."""
    height, width, count = samples_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[count], 0, 0, 0)
    packer = zlib.compressobj(6)
    pieces = [SIGNATURE, _chunk(b"IHDR", header)]
    step = 2 * count  # bytes a pixel
    above = np.zeros((1, width * step), np.uint8)
    for top in range(0, height, _ROWS_AT_ONCE):
        big_endian = samples_HWC[top : top + _ROWS_AT_ONCE].astype(">u2", order="C")
        rows = big_endian.view(np.uint8).reshape(len(big_endian), -1)
        packed = packer.compress(_filtered(rows, np.concatenate([above, rows[:-1]]), step))
        if packed:
            pieces.append(_chunk(b"IDAT", packed))
        above = rows[-1:]
    return b"".join([*pieces, _chunk(b"IDAT", packer.flush()), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> bytes:
    """Each row less a prediction from its neighbours: of none, left, up, mean, Paeth the one with the smallest rest."""
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:], corner[:, step:] = rows[:, :-step], above[:, :-step]
    a, b, c = (x.astype(np.int16) for x in (left, above, corner))
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, above, corner))
    predictions = [np.zeros_like(rows), left, above, ((a + b) // 2).astype(np.uint8), paeth]
    rests = np.stack([rows - prediction for prediction in predictions])  # modulo 256
    costs = np.minimum(rests, 255 - rests).astype(np.uint32).sum(axis=2)
    chosen = costs.argmin(axis=0)
    best = rests[chosen, np.arange(len(rows))]
    return np.concatenate([chosen.astype(np.uint8)[:, None], best], axis=1).tobytes()
