"""Names of files and other people's texts as they may be shown: on one line, and unable to move a cursor."""

from __future__ import annotations

import re

# control characters, the line and paragraph separators, what turns the writing direction, halves of characters
_UNSEEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def shown(text: object) -> str:
    r"""The text with line breaks, terminal escapes and invisible characters as \n, \x1b, \u202e."""
    return _UNSEEN.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _SHORT.get(found[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
