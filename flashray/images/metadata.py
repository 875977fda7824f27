"""What a photo says about itself: EXIF, XMP, orientation, and flashray's note of provenance.

EXIF is changed in place. A camera's private notes hold offsets from the start of the EXIF data, which would break if it
were written anew.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from xml.sax.saxutils import quoteattr

from flashray.images import ifd
from flashray.images.tiff import ICC, STRUCTURE, XMP

ORIENTATION = 274
_WIDTH, _HEIGHT = 40962, 40963  # of the pixels, as EXIF repeats them
_SIZE = (256, 257)  # the same as a TIFF has it
_ACROSS_AND_DOWN = (_SIZE, (282, 283), (_WIDTH, _HEIGHT))  # 282 and 283: pixels an inch
_PREVIEW, _PREVIEW_BYTES = 513, 514
EXIF_PREFIX = b"Exif\0\0"  # as JPEG has it
PHOTOSHOP_LAYERS = 37724
IPTC, PHOTOSHOP = 33723, 34377
_TOO_PRIVATE = STRUCTURE | {XMP, ICC, PHOTOSHOP_LAYERS, IPTC, PHOTOSHOP}
_NAMESPACE = "urn:flashray:provenance:1"
_IS = rb"""\s*=\s*(?:"[^"]*"|'[^']*')"""  # what follows an attribute's name
_DESCRIPTION = re.compile(rb"<rdf:Description(?:\s+[^\s=<>/]+" + _IS + rb")*\s*/?>")
_NOTE = re.compile(rb"\s+flashray:provenance" + _IS)
_EMPTIED = re.compile(rb"<rdf:Description(?:\s+(?:rdf:about|xmlns:rdf|xmlns:flashray)" + _IS + rb")*\s*/>")
_NOTE_ELEMENT = re.compile(rb"<flashray:provenance>[^<]*</flashray:provenance>")  # as other programs rewrite it


def bare_exif(exif: bytes | None) -> bytes | None:
    """EXIF data without its prefix; None when it is absent or broken."""
    if not exif:
        return None
    exif = exif.removeprefix(EXIF_PREFIX)
    try:
        ifd.read_first(exif)
    except ValueError:
        return None
    return exif


def orientation(exif: bytes | None) -> int:
    """1 to 8 as EXIF numbers them; 1 is upright, and stands for an absent or senseless tag."""
    if exif is None:
        return 1
    value = ifd.read_first(exif).number(ORIENTATION, 1)
    return value if 1 <= value <= 8 else 1


def upright_exif(exif: bytes, turned: bool) -> bytes:
    """The EXIF data of the upright photo: orientation 1, and width and height exchanged when a quarter turn was made.

    The small preview inside is blanked, since it shows the photo as it was before. Everything else stays where it is.
    """
    changed = bytearray(exif)
    main = ifd.read_first(exif)
    if ORIENTATION in main.entries:
        place = main.entries[ORIENTATION].place
        changed[place + 2 : place + 12] = struct.pack(f"{main.order}HIHH", 3, 1, 1, 0)
    known = _entries(main)
    for pair in _ACROSS_AND_DOWN if turned else ():
        if known.keys() >= set(pair):
            across, down = (known[tag].place for tag in pair)
            changed[across + 2 : across + 12] = exif[down + 2 : down + 12]
            changed[down + 2 : down + 12] = exif[across + 2 : across + 12]
    if main.next:
        changed[main.place_of_next : main.place_of_next + 4] = bytes(4)
        try:
            preview = ifd.read_at(exif, main.next, main.order, big=False)
        except ValueError:
            return bytes(changed)
        start, count = preview.number(_PREVIEW, 0), preview.number(_PREVIEW_BYTES, 0)
        if preview.place_of_next + 4 <= start <= start + count <= len(changed):  # else it would hold other things
            changed[start : start + count] = bytes(count)
    return bytes(changed)


def sized_exif(exif: bytes, width: int, height: int) -> bytes:
    """The EXIF data of a photo that has another size now, where they repeat the size."""
    changed = bytearray(exif)
    main = ifd.read_first(exif)
    known = _entries(main)
    for tag, value in zip((*_SIZE, _WIDTH, _HEIGHT), (width, height) * 2, strict=True):
        if tag in known:
            place = known[tag].place
            changed[place + 2 : place + 12] = struct.pack(f"{main.order}HII", 4, 1, value)
    return bytes(changed)


def _entries(main: ifd.Directory) -> dict[int, ifd.Entry]:
    """The entries of the first directory and of the one with EXIF's details."""
    details = main.inside.get(ifd.EXIF_DIRECTORY)
    return main.entries | (details.entries if details else {})


def exif_of_tiff(main: ifd.Directory) -> bytes | None:
    """The descriptive tags of a TIFF file as EXIF data; None when there are none."""
    entries = {tag: entry for tag, entry in main.entries.items() if tag not in _TOO_PRIVATE}
    if not entries and not main.inside:
        return None
    return ifd.header(main.order) + ifd.write(replace(main, entries=entries), 8)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP that says orientation 1 wherever it said another."""
    xmp = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])[2-8]([\"'])", rb"\g<1>1\g<2>", xmp)
    return re.sub(rb"(<tiff:Orientation>\s*)[2-8](\s*<)", rb"\g<1>1\g<2>", xmp)


def provenance_text(provenance: Mapping[str, str]) -> str:
    """The note as JSON on one line, keys sorted: the same note gives the same bytes."""
    return json.dumps(dict(provenance), ensure_ascii=False, sort_keys=True)


def xmp_with_provenance(xmp: bytes | None, provenance: Mapping[str, str]) -> bytes | None:
    """XMP with the note as the property `flashray:provenance`, instead of an earlier one; all else stays as it is.

    XMP is the one place for a note that JPEG, TIFF, WebP and AVIF share and that can be extended without moving what is
    there. None when the existing XMP has no end to put it before (it is broken, or not UTF-8).
    """
    text = "".join(char if char.isprintable() else "?" for char in provenance_text(provenance))  # XML forbids them
    note = (
        f'<rdf:Description rdf:about="" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        f'xmlns:flashray="{_NAMESPACE}" flashray:provenance={quoteattr(text)}/>'
    ).encode()
    if not xmp:
        return (
            b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            + note
            + b'</rdf:RDF></x:xmpmeta>\n<?xpacket end="w"?>'
        )
    xmp = _NOTE_ELEMENT.sub(b"", _DESCRIPTION.sub(_without_note, xmp))
    place = xmp.rfind(b"</rdf:RDF>")
    return None if place < 0 else xmp[:place] + note + xmp[place:]


def _without_note(description: re.Match[bytes]) -> bytes:
    """A tag without the note; nothing where it held that alone, for other programs add properties to the element."""
    kept = _NOTE.sub(b"", description[0])
    return b"" if kept != description[0] and _EMPTIED.fullmatch(kept) else kept
