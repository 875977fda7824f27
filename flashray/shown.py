"""Names of files and other people's texts as they may be shown, on one line and unable to move a cursor, or stored."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED = 3


def shown(text: object) -> str:
    r"""The text in which each character can be seen.

    Line breaks, control characters, spaces of other widths, marks that turn the direction of writing, halves of
    characters and the like become escapes such as \n and \u202e; no name can then look like another, or turn the text
    around it.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def first_of(names: Sequence[str]) -> str:
    """The first three names of a list, for a message, and … where there are more."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def storable(name: str) -> str:
    r"""The name of a file in UTF-8, as records hold it: bytes that are not UTF-8 are written as \xNN."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
