"""Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashray.shown import shown


def to_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table without the columns that are empty in every row; text left, the rest right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if any(row.get(name) for row in rows)]
    if not names:
        return ""
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---" if n == 0 else "---:" for n in range(len(names))) + "|",
    ]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name) or "") for name in names) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: object) -> str:
    """On one line, without the end of a cell or the beginning of HTML."""
    return shown(text).replace("|", "\\|").replace("<", "\\<")
