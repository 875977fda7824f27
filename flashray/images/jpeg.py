"""The segments of a JPEG file, and where its picture ends."""

from __future__ import annotations

from collections.abc import Iterator

COMMENT, CREDENTIALS = 0xFE, 0xEB  # markers: COM, and APP11, which holds content credentials (C2PA)
_END = 0xD9
_ALONE = {0x00, 0x01, 0xFF, *range(0xD0, 0xD8)}  # inside a scan, without a length: stuffed bytes, restarts, filling


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, the place behind its two bytes) of each segment, up to the end of the first picture."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 1:
        marker = data[place + 1]
        place += 1 if marker == 0xFF else 2
        if marker in _ALONE:
            continue
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
    elif found and kinds[-1] == _END and data[found[-1][1] :].strip(b"\0"):
        phrases.append("data behind the picture, such as a motion photo's video")
    return phrases
