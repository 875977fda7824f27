"""Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
        lines.append("| " + " | ".join(str(row.get(name) or "").replace("|", "\\|") for name in names) + " |")
    return "\n".join(lines) + "\n"
