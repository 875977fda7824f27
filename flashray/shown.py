"""Names of files and other people's texts as they may be shown: on one line, and unable to move a cursor."""

from __future__ import annotations


def shown(text: object) -> str:
    r"""The text in which each character can be seen.

    Line breaks, control characters, spaces of other widths, marks that turn the direction of writing, halves of
    characters and the like become escapes such as \n and \u202e; no name can then look like another, or turn the text
    around it.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))
