"""Directories of tags, the structure that TIFF files and EXIF data share.

Entries keep their bytes as they are, in their own byte order: what flashray does not understand is copied, not
interpreted. Pillow's own reader and writer guess the types of unknown tags.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

EXIF_DIRECTORY = 34665
GPS_DIRECTORY = 34853
INTEROPERABILITY_DIRECTORY = 40965
_NESTED = (EXIF_DIRECTORY, GPS_DIRECTORY, INTEROPERABILITY_DIRECTORY)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # of the types, in bytes
_BIG_SIZES = {16: 8, 17: 8, 18: 8}  # the types that only BigTIFF has
_MOST_ENTRIES = 4096


@dataclass(frozen=True)
class Entry:
    """A tag's value."""

    type: int  # as TIFF numbers it
    count: int
    data: bytes  # the value's bytes, in the directory's byte order
    place: int = -1  # where its 12 bytes (BigTIFF: 20) start in the file


@dataclass(frozen=True)
class Directory:
    """The entries by tag, the directories inside it by the tag that points to them, and the place of the next one."""

    order: str  # "<" or ">", as in struct
    entries: dict[int, Entry]
    inside: dict[int, Directory] = field(default_factory=dict)
    next: int = 0
    place_of_next: int = -1  # where `next` itself is written

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag; empty when it is absent or of another type."""
        entry = self.entries.get(tag)
        code = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}.get(entry.type) if entry else None
        if entry is None or code is None:
            return ()
        return struct.unpack(f"{self.order}{entry.count}{code}", entry.data)

    def number(self, tag: int, default: int) -> int:
        """The first whole number of a tag."""
        return next(iter(self.numbers(tag)), default)


def read_first(data: bytes) -> Directory:
    """The first directory of a TIFF file or of EXIF data (without its `Exif` prefix).

    Entries that point outside the data are left out. ValueError when there is no directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        raise ValueError("no TIFF header")
    magic = struct.unpack_from(f"{order}H", data, 2)[0]
    if magic not in (42, 43):
        raise ValueError("no TIFF header")
    big = magic == 43
    start = struct.unpack_from(f"{order}Q", data, 8)[0] if big and len(data) >= 16 else 0
    if not big:
        start = struct.unpack_from(f"{order}I", data, 4)[0]
    return read_at(data, start, order, big)


def read_at(data: bytes, start: int, order: str, big: bool, tags: tuple[int, ...] = _NESTED) -> Directory:
    """The directory that starts at a place; `tags`: those that point to directories inside it."""
    count_code, count_size, offset_code, offset_size = ("Q", 8, "Q", 8) if big else ("H", 2, "I", 4)
    entry_size = 4 + 2 * offset_size
    if start < 8 or start + count_size > len(data):
        raise ValueError("the directory lies outside the data")
    count = struct.unpack_from(order + count_code, data, start)[0]
    end = start + count_size + count * entry_size
    if count > _MOST_ENTRIES or end > len(data):
        raise ValueError("the directory is cut short")
    entries: dict[int, Entry] = {}
    inside: dict[int, Directory] = {}
    for place in range(start + count_size, end, entry_size):
        tag, kind = struct.unpack_from(f"{order}HH", data, place)
        number = struct.unpack_from(order + offset_code, data, place + 4)[0]
        size = (_SIZES | _BIG_SIZES if big else _SIZES).get(kind, 0) * number
        value = place + 4 + offset_size
        if size > offset_size:
            value = struct.unpack_from(order + offset_code, data, value)[0]
        if size == 0 or value + size > len(data):
            continue
        entries[tag] = Entry(kind, number, data[value : value + size], place)
        if tag in tags:
            target = struct.unpack_from(order + offset_code, data, place + 4 + offset_size)[0]
            deeper = (INTEROPERABILITY_DIRECTORY,) if tag == EXIF_DIRECTORY else ()
            try:  # each level has fewer tags that point further, so this ends
                inside[tag] = read_at(data, target, order, big, deeper)
            except ValueError:  # a broken part of the metadata is no reason to lose the rest
                continue
    following = struct.unpack_from(order + offset_code, data, end)[0] if end + offset_size <= len(data) else 0
    return Directory(order, entries, inside, following, end)


def write(directory: Directory, start: int) -> bytes:
    """The bytes of a directory that begins at `start` of its file (an even number), with those inside it.

    Its entries of the nested tags are replaced by pointers to `inside`; types of BigTIFF are left out.
    """
    order = directory.order
    tags = {tag for tag, entry in directory.entries.items() if entry.type in _SIZES and tag not in _NESTED}
    tags |= directory.inside.keys()
    place = start + 2 + 12 * len(tags) + 4
    table, behind = b"", b""
    for tag in sorted(tags):
        if tag in directory.inside:
            table += struct.pack(f"{order}HHII", tag, 4, 1, place + len(behind))
            behind += write(directory.inside[tag], place + len(behind))
        else:
            entry = directory.entries[tag]
            table += struct.pack(f"{order}HHI", tag, entry.type, entry.count)
            if len(entry.data) <= 4:
                table += entry.data.ljust(4, b"\0")
            else:
                table += struct.pack(f"{order}I", place + len(behind))
                behind += entry.data + b"\0" * (len(entry.data) % 2)
        behind += b"\0" * (len(behind) % 2)
    return struct.pack(f"{order}H", len(tags)) + table + bytes(4) + behind


def shorts(order: str, *values: int) -> Entry:
    """An entry of 16-bit numbers."""
    return Entry(3, len(values), struct.pack(f"{order}{len(values)}H", *values))


def longs(order: str, *values: int) -> Entry:
    """An entry of 32-bit numbers."""
    return Entry(4, len(values), struct.pack(f"{order}{len(values)}I", *values))


def header(order: str) -> bytes:
    """The eight bytes in front of everything; the first directory begins behind them."""
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
