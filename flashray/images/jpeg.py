"""The segments of a JPEG file, and where its picture ends."""

from __future__ import annotations

import re
from collections.abc import Iterator

COMMENT, CREDENTIALS = 0xFE, 0xEB  # markers: COM, and APP11, which holds content credentials (C2PA)
_END = 0xD9
# not what stands inside a scan without a length: stuffed bytes (00), restarts (D0 … D7), filling (FF)
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd8-\xfe])")
_FILLING = b"\0\xff \t\r\n"


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, the place behind its two bytes) of each segment, up to the end of the first picture."""
    place = 2
    while found := _MARKER.search(data, place):
        marker, place = found[1][0], found.end()
        yield marker, place
        if marker == _END:
            return
        place += int.from_bytes(data[place : place + 2], "big")


def left_out(data: bytes, further_pictures: bool) -> list[str]:
    """What a JPEG holds and no output will, one phrase each; further pictures stand behind the first one."""
    found = list(segments(data))
    kinds = [marker for marker, _ in found]
    phrases = ["content credentials (APP11)"] if CREDENTIALS in kinds else []
    phrases += ["further comments"] if kinds.count(COMMENT) > 1 else []
    if further_pictures:
        phrases.append("the further pictures of the file (MPO)")
    elif found and kinds[-1] == _END and data[found[-1][1] :].strip(_FILLING):
        phrases.append("data behind the picture, such as a motion photo's video")
    return phrases
